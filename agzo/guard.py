"""Can a finite difference be taken of this loss? What is looked at around its evaluations.

    enter       each step: the tuned parameters are the model's own, and no dropout is active
    check       before the first step, and after a module was switched between training and
                evaluation: the loss is a function, and each use of a tuned parameter is seen
    evaluated   after each evaluation: what it left behind, which `end` compares
    active      parameters that take part now: those that require grad, but for those that wait
                because no batch has reached them yet (`agzo.tuned.reached`)

All of it raises ValueError before a wrong slope is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from agzo.directions.sampler import DirectionSampler
from agzo.directions.seen import SeenTokens
from agzo.distributed.group import Group
from agzo.distributed.pieces import Joint
from agzo.execution.loss_check import Uses, check_loss
from agzo.execution.steady import Steady, backward_refused
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import Tuned

WAITING = "waiting"  # in the state of a method: names of the parameters that wait


class Guard:
    """Watches over the evaluations of an optimizer; its state `zo` has what a resumed run needs."""

    def __init__(self, model: nn.Module, tuned: list[Tuned]) -> None:
        self._model = model
        self._dropouts = _dropouts(model)
        self._steady = Steady(model, list({each.device for each in tuned}))
        self.reached: set[str] = set()  # of the parameters that wait, in this step
        self.follow(tuned)

    def follow(self, tuned: list[Tuned]) -> None:
        """Take in what is tuned from now on."""
        self._tuned, self._places = tuned, Places(self._model, tuned)

    def active(self, zo: dict[str, Any]) -> list[Tuned]:
        """List the parameters that take part now."""
        waiting = zo.get(WAITING, ())
        return [e for e in self._tuned if e.parameter.requires_grad and e.name not in waiting]

    def enter(self, zo: dict[str, Any]) -> None:
        """Refuse a step or an estimate that the model or the optimizer is not ready for."""
        self._places.check()
        self.refuse_dropout()
        if not self.active(zo):
            raise ValueError(
                "params: no tuned parameter requires grad any more; allowed is a model with one"
            )

    def refuse_dropout(self) -> None:
        """Raise ValueError if a dropout module is active."""
        for name, module in self._dropouts:
            if module.training and module.p > 0:
                raise ValueError(
                    f"module {name}: active dropout (p={module.p}) makes the loss random and "
                    "drowns a finite difference; call model.eval() or set p=0"
                )

    def switched(self) -> bool:
        """Tell whether a module was switched to training or evaluation since the last check."""
        return self._steady.switched()

    def checked(self) -> None:
        """Take the modes of all modules for those that the loss was checked in."""
        self._steady.checked()

    def check(
        self,
        zo: dict[str, Any],
        batch: Joint,
        forward: Callable[[Closure], Tensor],
        look: DirectionSampler,
        seen: SeenTokens | None,
        must_see: bool,
        group: Group,
    ) -> None:
        """Evaluate the loss twice and refuse one that no finite difference can be taken of.

        Args:
            zo: the method's state.
            batch: the first batch, or that of the step in which a module was switched.
            forward: evaluates it and counts.
            look: learns from it how weights are called.
            seen: notes the rows that it looks up.
            must_see: a use of a parameter that is not seen is an error.
            group: with several processes no parameter may wait.
        """
        if zo["step"] == 0:
            zo.pop(WAITING, None)  # of a first step that was not taken
        active = self.active(zo)
        self._steady.begin(checking=True)

        def once() -> Tensor:
            with backward_refused(active), look.learn(batch.token_mask):
                return forward(batch)

        if seen is not None:
            seen.begin(None)
        run = once if seen is None else partial(seen.watch, once)
        explain = partial(self._steady.refuse_noise, batch)
        waiting = check_loss(run, active, must_see, self._model, explain)
        if seen is not None:
            zo["lookups"] = -(-seen.lookups // len(batch.pieces))  # of a piece
        self._steady.check(batch)
        if waiting and zo["step"] == 0:
            _refuse_to_wait(waiting, group)
            zo[WAITING] = waiting

    def begin(self) -> None:
        """Begin the evaluations of a step."""
        self._steady.begin()

    def running(self, zo: dict[str, Any]) -> Any:
        """Return what must be entered around an evaluation: it notes who need not wait any more."""
        if not zo.get(WAITING):
            return nullcontext()
        return _Reached([e for e in self._tuned if e.name in zo[WAITING]], self.reached)

    def evaluated(self) -> None:
        """Note what an evaluation left behind."""
        self._steady.evaluated()

    def end(self, batch: Joint) -> None:
        """Refuse evaluations that were not of the same model."""
        self._steady.check(batch)

    def moved(self, zo: dict[str, Any]) -> None:
        """End a step: what it has reached takes part from the next one on."""
        if self.reached:
            zo[WAITING] = [name for name in zo[WAITING] if name not in self.reached]
            self.reached.clear()


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


class _Reached(Uses):
    """Adds the names of parameters that calls use to a set."""

    def __init__(self, tuned: list[Tuned], found: set[str]) -> None:
        super().__init__(tuned)
        self._found = found

    def __exit__(self, *ending: Any) -> None:
        super().__exit__(*ending)
        self._found |= {self.tuned[key] for key in self.seen}


def _refuse_to_wait(names: list[str], group: Group) -> None:
    if group.size > 1:
        raise ValueError(
            f"no token of this process's share reaches {', '.join(names[:5])}; with "
            f"{group.size} processes allowed are layers that every share reaches: use "
            "one process, or leave them out with params="
        )


def _dropouts(model: nn.Module) -> list[tuple[str, Any]]:
    """List the dropout modules of a model."""
    kind = nn.modules.dropout._DropoutNd
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
