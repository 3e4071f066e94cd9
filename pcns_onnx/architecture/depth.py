"""How deep a network should be, from the significant dimensions of its layers alone.

Garg, Panda and Roy take a layer for an expansion of the data into more dimensions; one that does not
expand them is superfluous. What they write can be read in two ways, and both are here:

- 'first-contraction', the loop of Algorithm 1: the first layer whose S is not above that of the layer
  in front of it ends the network.
- 'monotone', the text of section III-D: layers that break the monotonicity are dropped and the rest
  stays, so a layer stays if its S is above that of the last one that stayed.

Their Table 2 comes from the second: of CIFAR-10/VGG-16's 11, 42, 103, 118, 238, 249, 249, 424, 271, ... the
loop would stop at the second 249, with six layers; the table has seven, 424 among them. It also gives MobileNet's row.
Three rows of the table follow neither: of VGG-19 on CIFAR-100 a 241 behind a 231 is dropped; of AlexNet a 251 behind
a 304 is kept; of VGG-19 on ImageNet three 492 behind a 492 are kept, although VGG-16's second 249 went.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pcns_onnx.errors import InputError

Rule = Callable[[Sequence[int]], list[bool]]


def first_contraction(dimensions: Sequence[int]) -> list[bool]:
    """Which layers stay: all in front of the first that does not expand its predecessor's dimensions."""
    stays = [True] * len(dimensions)
    for at in range(1, len(dimensions)):
        stays[at] = stays[at - 1] and dimensions[at] > dimensions[at - 1]
    return stays


def monotone(dimensions: Sequence[int]) -> list[bool]:
    """Which layers stay: those with more dimensions than every layer that stayed in front of them."""
    stays, most = list[bool](), 0
    for count in dimensions:
        stays.append(count > most)
        most = max(most, count)
    return stays


def unchanged(dimensions: Sequence[int]) -> list[bool]:
    """All layers stay."""
    return [True] * len(dimensions)


RULES: Mapping[str, Rule] = {"monotone": monotone, "first-contraction": first_contraction, "none": unchanged}
"""By the name that options know it by."""


def rule_named(name: str) -> Rule:
    """The rule of this name; raises `InputError`."""
    if name not in RULES:
        raise InputError(f"--depth {name} is not understood: write {' or '.join(RULES)}")
    return RULES[name]
