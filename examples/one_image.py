"""Makes one picture with the embedded model and writes it beside this process.

python examples/one_image.py "a red circle on a blue background" picture.png
"""

import sys
from pathlib import Path

from sdxl_core import Request, SdxlError, encode_image, generate, load_model


def main(prompt: str = "a red circle on a blue background", out: str = "picture.png") -> None:
    """Generates ``prompt`` and writes it to ``out``."""
    request = Request(prompt=prompt, height=128, width=128, steps=20)
    (image,) = generate([request], model=load_model("tiny"), slots=1)
    if image.error is not None:
        raise image.error
    assert image.rgb_HWC is not None
    data = encode_image(image.rgb_HWC, image_format="png", parameters=vars(request))
    Path(out).write_bytes(data)
    print(f"{out}: {request.height}x{request.width} px, {len(data)} bytes")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SdxlError as error:
        sys.exit(f"no picture: {error}")
