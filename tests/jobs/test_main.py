"""The command line: what it accepts, what it refuses and how it says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.registry import JOBS, Job
from sdxl_core.contract.config import load_toml
from tests.jobs.paint_job import PaintConfig, PaintHow

PAINT = Job(
    module="tests.jobs.paint_job",
    config="tests.jobs.paint_job:PaintConfig",
    help="paint rows",
    has_plan=True,
)


@pytest.fixture(autouse=True)
def paint_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JOBS, "paint", PAINT)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "paint.toml"
    path.write_text('prompts = "p.csv"\nsteps = 9\nrefine = false\n[how]\nslots = 2\n')
    return str(path)


def test_flags_set_fields_by_dotted_name_and_the_last_line_is_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = "paint p.csv out --steps 7 --how.slots 2 --no-refine --sampler heun"
    assert main(arguments.split()) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["steps"] == 7
    assert summary["how"] == {"slots": 2}
    assert summary["refine"] is False
    assert summary["sampler"] == "heun"


def test_flags_win_over_recipe_and_recipe_over_defaults(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    assert main(["paint", "q.csv", "out", "--recipe", recipe, "--steps", "5"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["prompts"] == "q.csv"
    assert summary["steps"] == 5
    assert summary["refine"] is False
    assert summary["how"] == {"slots": 2}
    assert summary["sampler"] == "euler"


def test_print_config_prints_toml_that_is_a_recipe_for_the_same_run(
    capsys: pytest.CaptureFixture[str], recipe: str, tmp_path: Path
) -> None:
    command = ["paint", "q.csv", "out", "--note", "a 'quoted' \"note\"", f"--recipe={recipe}"]
    assert main([*command, "--print-config"]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert load_toml(PaintConfig, printed) == PaintConfig(
        prompts="q.csv",
        out="out",
        steps=9,
        refine=False,
        note="a 'quoted' \"note\"",
        how=PaintHow(slots=2),
    )


def test_recipe_that_lacks_a_required_field_needs_it_on_the_command_line(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    assert main(["paint", "--recipe", recipe]) == 2
    assert "OUT" in capsys.readouterr().err


def test_plan_describes_and_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("paint p.csv out --plan --end JobError".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["would paint p.csv", "in 30 steps", '{"plan": "p.csv"}']


def test_job_without_a_plan_has_no_such_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("export a b --layout diffusers --plan".split()) == 2
    assert "--plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        ("fine", 0),
        ("some_failed", 3),
        ("ConfigError", 2),
        ("SchemaError", 2),
        ("ResourceError", 2),
        ("WeightsError", 2),
        ("JobError", 1),
        ("StoreError", 1),
        ("sigterm", 130),
    ],
)
def test_exit_code_says_how_the_run_ended(end: str, exit_code: int) -> None:
    assert main(["paint", "p.csv", "out", "--end", end]) == exit_code


def test_error_of_ours_is_one_clean_message_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    main("paint p.csv out --end SchemaError".split())
    printed = capsys.readouterr()
    assert printed.err == "sdxl: SchemaError: table.csv: something is wrong\n"
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("pain p.csv out", "did you mean paint?"),
        ("zzzzz", "there is no such job"),
        ("paint p.csv out --step 3", "did you mean --steps?"),
        ("paint p.csv out --slots 3", "did you mean --how.slots?"),
        ("paint p.csv out --slot=3", "did you mean --how.slots?"),
        ("paint p.csv out --no_refin", "did you mean --no-refine?"),
        ("paint p.csv out --recip x", "did you mean --recipe?"),
        ("paint p.csv out --zzzzz", "--zzzzz: unknown flag; `sdxl paint --help` lists all"),
        ("generate p.csv out --stps 3", "did you mean --defaults.steps?"),
        ("generate p.csv out --guidance 3", "did you mean --defaults.guidance-scale?"),
        ("paint p.csv out --sampler eule", "euler"),
        ("paint p.csv out --steps 2.5", "--steps"),
        ("paint p.csv out --steps 0", "steps must be >= 1, got 0"),
        ("paint p.csv", "OUT"),
        ("paint p.csv out --recipe nowhere.toml", "nowhere.toml"),
        ("paint p.csv out --recipe", "--recipe"),
        ("", "usage: sdxl JOB"),
    ],
)
def test_wrong_command_is_refused_with_code_2_and_a_suggestion(
    capsys: pytest.CaptureFixture[str], arguments: str, expected: str
) -> None:
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("job", list(JOBS))
def test_help_of_every_job_names_every_option(capsys: pytest.CaptureFixture[str], job: str) -> None:
    assert main([job, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--recipe" in text
    assert "--print-config" in text


def test_overview_lists_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in JOBS)


def test_sigterm_after_ray_took_over_the_signal_is_still_an_interruption() -> None:
    code = (
        "import sys; from jobs.registry import JOBS, Job; from jobs.__main__ import main;"
        f"JOBS['paint'] = Job(module={PAINT.module!r}, config={PAINT.config!r}, help='');"
        "sys.exit(main('paint p.csv out --end import_ray'.split()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 130


def test_help_takes_less_than_a_second_and_loads_no_heavy_library() -> None:
    """Counted is processor time, which other work on the machine does not change."""
    code = (
        "import sys; from jobs.__main__ import main; code = main(['--help']);"
        "heavy = {'torch', 'ray', 'diffusers', 'pyarrow', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    assert 0 < seconds < 1.0


@pytest.mark.parametrize(
    "command", ["export --help", "fsck --help", "generate --help", "generate a b --print-config"]
)
def test_reading_the_command_line_loads_neither_torch_nor_ray(command: str) -> None:
    code = (
        "import sys; from jobs.__main__ import main; main(sys.argv[1:]);"
        "sys.exit(str({'torch', 'ray'} & set(sys.modules)) if {'torch', 'ray'} & set(sys.modules)"
        " else 0)"
    )
    arguments = [sys.executable, "-c", code, *command.split()]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
