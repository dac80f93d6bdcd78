"""What a finished file's input and output mean, found out by trying.

A file rarely says it. `assume` tries the plausible meanings on records that the model has not seen and takes the one
under which it is right most often.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from ..data.data import Data
from ..errors import InputError, NotApplicable, UnsafeInput
from ..model import Target
from ..model_checks import CHANCE_P
from ..seeds import generator
from ..twin.twin import Twin
from ..untrusted.model_file import ModelFile
from .assumptions import Assumptions, Overrides, alike
from .finished_model import Deployed, Differentiable, check_followed, file_twin, runtime_of
from .hypotheses import SURE, hypotheses, labels_of, outputs_for, outputs_of
from .preprocessing import Preprocessing, class_logits
from .readings import Asked, choose, simplest
from .trials import TEMPERATURES, TIED, WEAK, Trial, agreement, clearly, nothing_fits, renamed, sentences_of

PROBED = 500  # non-members that assumptions are tried on
SCREENED = 100  # of them, that every assumption is tried on; the rest is for those that may still be the best
WORSE = 0.01  # an assumption is dropped after screening when it is this likely only by luck behind the best


def assume(
    file: ModelFile, data: Data, overrides: Overrides, like: Assumptions | None = None
) -> tuple[Assumptions, list[str]]:
    """What the file's input and output mean, and sentences that say what was assumed and how to overrule it.

    Tries every plausible layout, scaling and order of outputs that `overrides` leave open on up to 500 non-members,
    drawn at random, in a fixed order from the simplest on. The best clean accuracy wins; among those that differ from
    it by no more than luck (exact McNemar test), the one under which the labels are most probable; among those that
    are alike in that too, the simplest, unless the file itself speaks against it. Where none of this tells two readings
    apart and a quick attack does, the less robust one is taken and the first sentence says so (`readings.ALIKE`).

    Args:
        like: what was assumed about the model it came from, which is tried first: the simplest of all.

    Raises:
        InputError: the model takes or answers something else than the data, an override does not fit, or nothing gives
            an accuracy clearly above chance: then all that was tried is listed with its accuracy.
        UnsafeInput: the runtime refuses the file.
    """
    if len(file.facts.inputs) != 1 or not file.facts.outputs:
        raise InputError(
            f"The model has {len(file.facts.inputs)} inputs and {len(file.facts.outputs)} outputs; a classifier "
            "with one input and an output of one value per class can be audited (the initial states of a recurrent "
            "network may be further inputs; states that come back are known by their names: state_in, state_out). Fix "
            "the others to constants and export it again."
        )
    drawn = torch.randperm(len(data.non_members), generator=generator(0, "artifact", "assume"))[:PROBED]
    records = data.non_members.take(drawn)
    x, y = records.x.cpu(), records.y.cpu()
    ports = outputs_for(file.facts.outputs, data.classes, overrides.output)
    wanted = [meaning for port in ports for meaning in hypotheses(file, port, data, overrides)]
    if like is not None:
        wanted.sort(key=lambda meaning: not alike(meaning[0], like))  # stable: the others keep their order
    runtimes = {name: runtime_of(file, 1, name) for name in {meaning[0].output for meaning in wanted}}
    trials = _screened(runtimes, wanted, data, overrides, file, x, y)
    answered = [trial for trial in trials if trial.chosen and not trial.fault]
    if not answered:
        raise InputError(next(trial.fault for trial in trials if trial.chosen))
    full = [trial for trial in answered if len(trial.predicted) == len(y)]
    best = max(full, key=lambda trial: trial.accuracy(y))  # the first of equals
    tied = [trial for trial in full if trial is best or not clearly(best, trial, y, TIED)]
    best = simplest(tied, like)
    p, kappa = agreement(best.predicted, y, data.classes)
    guessed = best is not answered[0] and len({trial.units for trial in answered}) > 1
    if p >= CHANCE_P / len(answered) or (guessed and kappa < WEAK):
        raise InputError(nothing_fits(answered, best, trials, y, data))
    asked = Asked(
        x=x,
        y=y,
        bounds=data.bounds,
        port=file.facts.inputs[0],
        deployed=lambda assumptions: Deployed(runtimes[assumptions.output], assumptions),
        module=_modules(file, x[0]),
    )
    rivals = [trial for trial in full if trial.assumptions.output == best.assumptions.output]
    doubt = ""
    if not renamed(best, y, data.classes)[1]:  # in another order of the classes no label is probable
        best, doubt = choose(best, rivals, asked, settled=like is not None and alike(best.assumptions, like))
    return best.assumptions, [*filter(None, [doubt]), *sentences_of(file, data, overrides, best, trials, y)]


def _modules(file: ModelFile, record: Tensor) -> Callable[[Assumptions], nn.Module | None]:
    """The twin behind a set of assumptions; None where the file has none that answers `record`.

    One twin is read for each output.
    """
    twins: dict[str | None, Twin | None] = {}

    def module(assumptions: Assumptions) -> nn.Module | None:
        if assumptions.output not in twins:
            twins[assumptions.output] = None
            with suppress(NotApplicable, UnsafeInput):
                twins[assumptions.output] = file_twin(file, assumptions.output)
        twin = twins[assumptions.output]
        if twin is None:
            return None
        found = Differentiable(twin, assumptions).eval()
        with suppress(NotApplicable):
            check_followed(found, record)
            return found
        return None

    return module


def _screened(
    runtimes: dict[str | None, Target],
    candidates: list[tuple[Assumptions, str, bool]],
    data: Data,
    overrides: Overrides,
    file: ModelFile,
    x: Tensor,
    y: Tensor,
) -> list[Trial]:
    """Predictions of every candidate on the first records, and on all of them where it may still be the best."""
    makers = {port.name: port.operator for port in file.facts.outputs}
    trials: list[Trial] = []
    nothing = torch.full((0,), -1), torch.zeros(0, len(TEMPERATURES), dtype=torch.float64)
    for assumptions, words, chosen in candidates:
        try:
            raw = runtimes[assumptions.output].logits(Preprocessing(assumptions)(x[:SCREENED]))
            orders = labels_of(raw.shape[1], data.classes, overrides.labels)
        except InputError as error:
            trials.append(Trial(assumptions, words, chosen, *nothing, str(error)))
            continue
        maker = makers.get(assumptions.output or file.facts.outputs[0].name, "")
        outputs = overrides.outputs or outputs_of(raw, maker.upper() in SURE, assumptions.smallest)
        for labels in orders:
            trial_assumptions = assumptions.model_copy(update={"outputs": outputs, "labels": labels})
            trials.append(Trial(trial_assumptions, words, chosen, *_answers(raw, trial_assumptions, y[:SCREENED])))
    for group in (True, False):  # those that the user's words allow, and the others
        alive = [trial for trial in trials if not trial.fault and trial.chosen is group]
        if not alive:
            continue
        best = max(alive, key=lambda trial: trial.accuracy(y))
        for trial in alive:
            if trial is best or not clearly(best, trial, y, WORSE):
                raw = runtimes[trial.assumptions.output].logits(Preprocessing(trial.assumptions)(x[SCREENED:]))
                if len(raw):
                    predicted, likelihoods = _answers(raw, trial.assumptions, y[SCREENED:])
                    trial.predicted = torch.cat([trial.predicted, predicted])
                    trial.likelihoods = torch.cat([trial.likelihoods, likelihoods])
    return trials


def _answers(raw: Tensor, assumptions: Assumptions, y: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions, and the log-probabilities of the labels by temperature; see `Trial`."""
    finite = torch.isfinite(raw).all(1)
    logits = class_logits(raw.nan_to_num(), assumptions).double()
    own = y[: len(logits), None].clamp_max(logits.shape[1] - 1)
    likelihoods = [torch.log_softmax(logits / temperature, 1).gather(1, own) for temperature in TEMPERATURES]
    return torch.where(finite, logits.argmax(1), -1), torch.cat(likelihoods, 1)
