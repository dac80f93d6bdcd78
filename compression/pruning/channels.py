"""Structured pruning: whole channels and whole attention heads are cut out, so that layers really are smaller."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable, user_error
from ...targets.model import device_of
from ...targets.plain import shared_weights, sharing_layers
from ..layers.attention import Attention, unfold_attention
from ..layers.edit import WEIGHTED, called_layers, replace_layers, working_copy

FIXED = (Attention, nn.MultiheadAttention, nn.RNNBase)  # their inputs and outputs keep their width when channels go
Scores = Mapping[str, Tensor]  # as `importance.importances` gives them


def remove_channels(
    module: nn.Module,
    example: Tensor,
    width: float,
    *,
    scores: Scores | None = None,
    round_to: int = 1,
    full: nn.Module | None = None,
) -> nn.Module:
    """A copy in evaluation mode with the share `width` of every layer's channels, those of the highest scores.

    Channels that must go together (residual adds, batch norm, the next layer's inputs) are found by torch-pruning
    (Fang et al. 2023, DepGraph, arXiv:2301.12900); a channel's score is the sum over all weights that go with it.
    A layer keeps round(width * channels), at least one. Attention, recurrent layers and layers that share a weight keep
    their width, and so does what feeds them or is added to them; so do gated units and a flattened concatenation.

    Args:
        example: float32 [n, *shape], on the module's device.
        scores: by parameter name, of a module without nn.MultiheadAttention (see `unfolded`); None: squared weights, so
            that channels are ranked by L2 norm (Li et al. 2017, arXiv:1608.08710).
        round_to: the channels that are left are rounded up to a multiple of it, never beyond what a layer has.
        full: the module whose channels `width` is a share of; None: `module`. One that loses channels step by step
            passes the dense one; then nothing needs to be left to remove.

    Raises:
        NotApplicable: torch-pruning cannot trace the module or remove channels without changing its logits' shape, or
            no layer loses a channel.
    """
    device = device_of(module)
    # On the CPU, so that every device chooses the same channels.
    example = example.cpu()
    pruned = unfolded(working_copy(module).cpu(), example)
    layers = called_layers(pruned, example)
    if len(layers) < 2:
        raise NotApplicable(
            "Channels can be removed only between two linear or convolutional layers; the model has one."
        )
    with torch.no_grad():
        shape = pruned(example).shape
    kept = [layer for layer in layers if layer.weight.shape[0] == shape[-1]][-1:]  # the layer that gives the logits
    if scores is None:
        scores = {name: value.detach().double().square() for name, value in pruned.named_parameters()}
    before = _count(pruned)
    try:
        slopes = _without_lone_slopes(pruned)
        _cut(pruned, example, kept, scores, lambda path, now: _left(path, now, full, width), round_to)
        replace_layers(pruned, {stand_in: layer for layer, stand_in in slopes.items()})
        with torch.no_grad():
            same = pruned(example).shape == shape
    except (MemoryError, ImportError, OSError):
        raise  # not an answer about the model: the cell fails and is tried again
    except Exception as error:  # third-party code on an unknown module: whatever stopped it, the audit goes on
        raise NotApplicable(f"torch-pruning cannot remove channels from this model: {user_error(error)}") from error
    if not same:
        raise NotApplicable("Removing channels would change the number of logits: the output layer was not recognised.")
    if full is None and _count(pruned) == before:
        shared = shared_weights(pruned)
        why = f"; {' and '.join(shared[0])} are one tensor, so their layers keep their width" if shared else ""
        raise NotApplicable(f"No layer is wide enough to lose a share of {1 - width:g} of its channels{why}.")
    return pruned.eval().to(device)


def unfolded(module: nn.Module, example: Tensor) -> nn.Module:
    """The module with its attention opened into plain layers, where there is any (then a copy).

    Raises:
        NotApplicable: the module cannot run with its attention opened.
    """
    if not any(type(layer) is nn.MultiheadAttention for layer in module.modules()):
        return module
    opened = unfold_attention(copy.deepcopy(module))
    try:
        with torch.no_grad():
            opened(example)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a user's module may use attention's packed weights in ways of its own
        raise NotApplicable(
            f"The model does not run with its attention as plain linear layers: {user_error(error)}"
        ) from error
    return opened


def _without_lone_slopes(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """Puts a LeakyReLU in place of each PReLU with one slope for all channels; by layer, its stand-in.

    torch-pruning 1.6.1 loses track of the channels at such a PReLU: behind it, a flattening counts as none.
    """
    stand_ins: dict[nn.Module, nn.Module] = {
        layer: nn.LeakyReLU(float(layer.weight.detach())).eval()
        for layer in module.modules()
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1
    }
    replace_layers(module, stand_ins)
    return stand_ins


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _left(path: str, now: int, full: nn.Module | None, width: float) -> int:
    """How many of the channels of the layer at `path` are to be left: at least one."""
    layer = None if full is None else full.get_submodule(path)
    if isinstance(layer, nn.Linear):
        now = layer.out_features
    elif isinstance(layer, WEIGHTED):
        now = int(layer.out_channels)  # type: ignore[arg-type]  # every layer of WEIGHTED but Linear is a convolution
    return max(1, round(width * now))


def _cut(
    module: nn.Module,
    example: Tensor,
    kept: list[Any],
    scores: Scores,
    left: Callable[[str, int], int],
    round_to: int,
) -> None:
    """Removes channels in place: per group of layers that must agree, all but the `left(path, channels)` best."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    paths = {layer: path for path, layer in module.named_modules()}
    groups = list(graph.get_all_groups(ignored_layers=kept))
    fixed = {part for layer in module.modules() if isinstance(layer, FIXED) for part in layer.modules()}
    fixed |= sharing_layers(module)
    summed = _group_scores(module, scores)
    to_remove = []
    for group in groups:  # all are ranked before the first is cut: scores have the uncut shapes
        root, function = group[0].dep.target.module, group[0].dep.handler
        score = summed(group) if _simple(graph, group, fixed) else None
        if score is None:
            continue
        channels, parts = len(score), _parts(graph, group)
        unit = math.lcm(round_to, parts)
        stay = min(channels, unit * math.ceil(left(paths[root], channels) / unit))
        if stay == channels or stay % parts or channels % parts:
            continue
        # Grouped convolutions and group norms must lose as many channels in each of their groups: the same ones.
        ranked = score.view(parts, -1).sum(0).argsort(stable=True)[: (channels - stay) // parts]
        offsets = torch.arange(parts) * (channels // parts)
        to_remove.append((root, function, sorted((ranked[None, :] + offsets[:, None]).flatten().tolist())))
    for root, function, indices in to_remove:
        group = graph.get_pruning_group(root, function, indices)
        if graph.check_pruning_group(group):
            group.prune()


def _simple(graph: Any, group: Any, fixed: set[nn.Module]) -> bool:
    """Whether any one channel of a full group can go alone, from every layer that gives it, and no `fixed` layer cares.

    Not so where a layer's output is split and its parts are multiplied (gated units): one channel takes another along.
    Nor where a concatenation is flattened: torch-pruning 1.6.1 loses its offsets and ties the first channels of one
    layer to all of another.
    """
    if any(dependency.target.module in fixed for dependency, _ in group):
        return False
    root = group[0].dep
    first = graph.get_pruning_group(root.target.module, root.handler, [0])
    return all(
        len(indices) == (graph.get_out_channels(dependency.target.module) if whole else 1)
        for members, whole in ((group, True), (first, False))
        for dependency, indices in members
        if isinstance(dependency.target.module, WEIGHTED) and graph.is_out_channel_pruning_fn(dependency.handler)
    )


def _parts(graph: Any, group: Any) -> int:
    """Into how many equal runs of channels a group is divided by its grouped convolutions and group norms."""
    parts = 1
    for dependency, _ in group:
        layer = dependency.target.module
        if getattr(layer, "groups", 1) == getattr(layer, "out_channels", 0):
            continue  # depthwise: every channel is a group of its own and can go alone
        pruner = graph.get_pruner_of_module(layer)
        out = graph.is_out_channel_pruning_fn(dependency.handler)
        count = (pruner.get_out_channel_groups if out else pruner.get_in_channel_groups)(layer)
        parts = math.lcm(parts, int(count or 1))
    return parts


def _group_scores(module: nn.Module, scores: Scores) -> Callable[[Any], Tensor | None]:
    """What torch-pruning's magnitude importance would sum up over a group if the weights were the scores."""
    import torch_pruning

    measure = torch_pruning.importance.GroupMagnitudeImportance(p=1, normalizer=None)
    parameters = dict(module.named_parameters())
    largest = max((float(score.max()) for score in scores.values() if score.numel()), default=0) or 1.0

    def summed(group: Any) -> Tensor | None:
        values = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = (scores[name] / largest).to(parameter.dtype)  # squares of gradients are tiny
            score: Tensor | None = measure(group)
            return score
        finally:
            for name, parameter in parameters.items():
                parameter.data = values[name]

    return summed


def remove_heads(module: nn.Module, width: float, *, scores: Scores, full: nn.Module | None = None) -> nn.Module:
    """A copy whose attention layers have the share `width` of their heads, those of the highest scores.

    A head's score is the sum over its rows of the three projections and its columns of the output's (that whole heads
    can go: Michel et al. 2019, arXiv:1905.10650). A layer keeps round(width * heads), at least one.

    Args:
        module: without nn.MultiheadAttention (see `unfolded`).
        scores: by parameter name of `module`.
        full: the module whose heads `width` is a share of; None: `module`, of which some layer must lose a head.

    Raises:
        NotApplicable: there is no attention of plain linear layers, or no layer loses a head.
    """
    pruned = working_copy(module)
    paths = {layer: path for path, layer in pruned.named_modules() if isinstance(layer, Attention)}
    whole = {layer: path for layer, path in paths.items() if all(type(part) is nn.Linear for part in layer.children())}
    if not whole:
        raise NotApplicable(
            "The model has no multi-head attention of plain linear layers, so it has no heads to remove."
        )
    stand_ins: dict[nn.Module, nn.Module] = {}
    for layer, path in whole.items():
        assert isinstance(layer, Attention)
        original = layer if full is None else full.get_submodule(path)
        assert isinstance(original, Attention)
        stay = max(1, round(width * original.num_heads))
        if stay < layer.num_heads:
            prefix = f"{path}." if path else ""
            own = {name: scores[prefix + name] for name, _ in layer.named_parameters()}
            best = _head_scores(layer, own).argsort(stable=True, descending=True)[:stay]
            stand_ins[layer] = _with_heads(layer, best.sort().values)
    if full is None and not stand_ins:
        raise NotApplicable(f"No attention layer has enough heads to lose a share of {1 - width:g} of them.")
    return replace_layers(pruned, stand_ins).eval()


def _head_scores(layer: Attention, scores: Scores) -> Tensor:
    """float64 [heads], of the scores of one layer's own parameters."""
    total = torch.zeros(layer.num_heads, dtype=torch.float64)
    for name, score in scores.items():
        if name == "out_proj.weight":
            total += score.T.reshape(layer.num_heads, -1).sum(1)
        elif not name.startswith("out_proj"):
            total += score.reshape(layer.num_heads, -1).sum(1)
    return total


def _with_heads(layer: Attention, heads: Tensor) -> Attention:
    """The layer with only the heads of these indices (ascending)."""
    features = layer.q_proj.out_features // layer.num_heads
    smaller = Attention(
        layer.embed_dim, len(heads), features, layer.kdim, layer.vdim, layer.bias, layer.dropout, layer.batch_first
    )
    like = layer.out_proj.weight
    units = (heads[:, None] * features + torch.arange(features)).flatten().to(like.device)
    state = {
        name: value[:, units] if name == "out_proj.weight" else value if name == "out_proj.bias" else value[units]
        for name, value in layer.state_dict().items()
    }
    smaller = smaller.to(like.device, like.dtype)
    smaller.load_state_dict(state)
    return smaller.train(layer.training)
