"""Where the tuned parameters are in a model, and whether they still are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from agzo.tuned.select import Tuned


class Places:
    """The module and the name under which it holds each tuned parameter.

    A parameter that takes the place of a tuned one, after ``load_state_dict(assign=True)`` say, is
    used by the loss and known to no optimizer: it would neither be perturbed nor moved.
    """

    def __init__(self, model: nn.Module, tuned: Sequence[Tuned]) -> None:
        self._model, self._tuned = model, list(tuned)
        self._places = self._find()

    def check(self) -> None:
        """Raise ValueError if a tuned parameter is no longer one of the model's."""
        for module, name, parameter in self._places:
            held = module._parameters
            if name not in held or held[name] is not parameter:
                self._places = self._find()  # it may have moved, into a parametrization say
                break

    def _find(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        found = {
            parameter: (module, name, parameter)
            for module in self._model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        gone = [each.name for each in self._tuned if each.parameter not in found]
        if gone:
            raise ValueError(
                f"{len(gone)} tuned parameter(s) are no longer the model's: {', '.join(gone[:5])} "
                "(replaced, as load_state_dict(assign=True) does, or taken away); allowed is a "
                "model with the parameters that the optimizer was made of: make a new optimizer"
            )
        return [found[each.parameter] for each in self._tuned]
