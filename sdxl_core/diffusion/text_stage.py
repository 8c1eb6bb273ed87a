"""Encodes the texts of many requests, each distinct text once."""

import collections
from collections.abc import Mapping, Sequence

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import (
    TextPair,
    TextStates,
    encode_pairs,
    negative_pair,
    positive_pair,
)
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.presets import ModelKind

RowTexts = dict[ModelKind, tuple[TextStates, TextStates | None]]


class TextStage:
    """Text encoders of a base and possibly a refiner, behind a cache of bounded size.

    Args:
        models: Base and refiner; only their text encoders are used.
        max_cache_bytes: States kept, least recently used thrown away first. A table whose distinct
            prompts fit has each of them encoded once.

    Attributes:
        num_encoded: Text pairs that went through an encoder.
    """

    def __init__(
        self, models: Mapping[ModelKind, SdxlModel], *, max_cache_bytes: int = 2 << 30
    ) -> None:
        self._models = dict(models)
        self._max_cache_bytes = max_cache_bytes
        self._cache: collections.OrderedDict[tuple[ModelKind, TextPair], TextStates] = (
            collections.OrderedDict()
        )
        self._cache_bytes = 0
        self.num_encoded = 0

    def encode(self, requests: Sequence[Request]) -> list[RowTexts]:
        """States of each request's texts, for each network that the request uses.

        A negative of None stands for zeros, or for a row without guidance. Equal texts give the
        same object.

        Raises:
            RowError: if the tokenizer fails on a text.
        """
        wanted = [self._pairs(request) for request in requests]
        found: dict[tuple[ModelKind, TextPair], TextStates] = {}
        for kind in self._models:
            pairs = {
                pair: None
                for row in wanted
                if kind in row
                for pair in row[kind]
                if pair is not None
            }
            found.update(self._states(kind, list(pairs)))
        return [
            {
                kind: (
                    found[(kind, positive)],
                    None if negative is None else found[(kind, negative)],
                )
                for kind, (positive, negative) in row.items()
            }
            for row in wanted
        ]

    def _pairs(self, request: Request) -> dict[ModelKind, tuple[TextPair, TextPair | None]]:
        return {
            kind: (
                positive_pair(request, model),
                negative_pair(request, model) if request.guided else None,
            )
            for kind, model in self._models.items()
            if kind == "base" or request.refiner
        }

    def _states(
        self, kind: ModelKind, pairs: list[TextPair]
    ) -> dict[tuple[ModelKind, TextPair], TextStates]:
        new = [pair for pair in pairs if (kind, pair) not in self._cache]
        known = [(kind, pair) for pair in pairs if (kind, pair) in self._cache]
        found = {key: self._cache[key] for key in known}
        for key in found:
            self._cache.move_to_end(key)
        try:
            states = encode_pairs(self._models[kind], new)
        except (UnicodeError, ValueError, IndexError, KeyError) as error:
            # What a tokenizer raises on text that it cannot read; the caller tries rows one by one.
            raise RowError(Reason.TOKENIZER_FAILED, f"{type(error).__name__}: {error}") from error
        self.num_encoded += len(new)
        for pair, state in zip(new, states, strict=True):
            found[(kind, pair)] = state
            self._keep((kind, pair), state)
        return found

    def _keep(self, key: tuple[ModelKind, TextPair], states: TextStates) -> None:
        self._cache[key] = states
        self._cache_bytes += states.context_TD.nbytes + states.pooled_P.nbytes
        while self._cache_bytes > self._max_cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= oldest.context_TD.nbytes + oldest.pooled_P.nbytes
