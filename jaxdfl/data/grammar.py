"""A small grammar of statements that exclude or imply one another, or do neither.

Sentences are short and plain (hypernyms, antonyms, negation, quantifiers, numbers, time, comparison, passive), so
that a small encoder learns them quickly: a pair takes 11 to 22 of BERT's tokens, on average 16. A family draws a
subject and two independent matters of it, each as two statements that cannot both hold. As usual in inference data,
premise and hypothesis speak of the same things: "the animal" is the dog of the premise.
"""

import random
from collections.abc import Callable
from typing import NamedTuple


class Fact(NamedTuple):
    """One state of affairs in two wordings: the premise implies the hypothesis."""

    premise: str
    hypothesis: str


Contraries = tuple[Fact, Fact]  # either's premise rules out the other's hypothesis


class Kind(NamedTuple):
    """A class of things, and the states they may be in: a slash parts contraries, a blank independent matters.

    States that depend on the class are left out: a big mouse is no big animal.
    """

    name: str
    plural: str
    nouns: str  # all with a plural in -s
    states: str


KINDS = (
    Kind(
        "animal",
        "animals",
        "dog cat horse cow rabbit goat pig bear monkey lion",
        "wet/dry hungry/full asleep/awake sick/healthy black/white male/female",
    ),
    Kind(
        "person",
        "people",
        "doctor nurse lawyer teacher baker pilot farmer singer sailor painter",
        "rich/poor happy/sad asleep/awake married/single sick/healthy hungry/full",
    ),
    Kind(
        "vehicle",
        "vehicles",
        "car truck van taxi tractor jeep",
        "clean/dirty wet/dry new/old empty/full red/blue locked/unlocked",
    ),
    Kind(
        "building",
        "buildings",
        "house hotel school castle bank hospital theater temple",
        "clean/dirty new/old empty/full open/closed public/private",
    ),
    Kind(
        "garment",
        "garments",
        "coat shirt jacket skirt hat sweater",
        "clean/dirty wet/dry new/old red/blue torn/intact loose/tight",
    ),
)
PLACES = (
    "",
    "near the river",
    "by the road",
    "on the hill",
    "across the street",
    "near the station",
    "by the lake",
    "in the picture",
    "in the film",
    "on the left",
)
PEOPLE = (
    "Anna Ben Carl Diana Emma Frank George Helen Ian Jack Kate Laura Mary Nick Oliver Paul Rose Sam Tom Lucy "
    "Peter Alice David Sarah Martin Julia Simon Clara Henry Ruth"
)
RELATIONS = (
    "is taller than/is shorter than",
    "is older than/is younger than",
    "is richer than/is poorer than",
    "is stronger than/is weaker than",
    "arrived before/arrived after",
    "left before/left after",
    "spoke before/spoke after",
)
VERBS = "call/called help/helped thank/thanked pay/paid warn/warned follow/followed trust/trusted"
INDOORS = "kitchen attic cellar bathroom bedroom library office"
OUTDOORS = "garden park field street forest desert yard"
AWAKE = "running walking dancing reading cooking painting swimming"
ASLEEP = "sleeping napping dozing snoring"
POSSESSIONS = "dogs cats horses books cars coats clocks lamps chairs maps hats"
NUMBERS = "two three four five six seven eight nine ten"
EVENTS = (
    "bought the farm",
    "sold the boat",
    "left the army",
    "lost the ring",
    "quit the band",
    "wrote the book",
    "won the prize",
    "met the king",
)
YEARS = range(1940, 2011, 10)


def _subject(rng: random.Random) -> tuple[Kind, str, str]:
    """A kind, one of its nouns, and where that stands (possibly "")."""
    kind = rng.choice(KINDS)
    return kind, rng.choice(kind.nouns.split()), rng.choice(PLACES)


def _thing(rng: random.Random) -> tuple[str, Contraries, Contraries]:
    """`The dog near the river is wet.` => `The animal is wet.`, with or without negation."""
    kind, noun, place = _subject(rng)
    subject = f"{noun} {place}".strip()
    contraries = []
    for states in rng.sample(kind.states.split(), 2):
        yes, no = _either_way(rng, states)
        said, heard = rng.choice(
            (
                ((yes, no), (yes, no)),
                ((yes, no), (yes, no)),  # twice: half of all cases are the plain ones
                ((yes, f"not {yes}"), (yes, f"not {yes}")),
                ((yes, no), (f"not {no}", f"not {yes}")),
            )
        )
        one, two = (
            Fact(f"The {subject} is {p}.", f"The {kind.name} is {h}.") for p, h in zip(said, heard, strict=True)
        )
        contraries.append((one, two))
    return subject, contraries[0], contraries[1]


def _things(rng: random.Random) -> tuple[str, Contraries, Contraries]:
    """`All the dogs near the river are wet.` => `Some of the animals are wet.`; none => not all."""
    kind, noun, place = _subject(rng)
    subject = f"{noun}s {place}".strip()

    def quantified(states: str) -> Contraries:
        state, _ = _either_way(rng, states)
        return (
            Fact(f"All the {subject} are {state}.", f"Some of the {kind.plural} are {state}."),
            Fact(f"None of the {subject} are {state}.", f"Not all of the {kind.plural} are {state}."),
        )

    one, two = rng.sample(kind.states.split(), 2)
    return subject, quantified(one), quantified(two)


def _couple(rng: random.Random) -> tuple[str, Contraries, Contraries]:
    """`Anna is taller than Ben.` => `Ben is shorter than Anna.`, `Anna called Ben.` => `Ben was called by Anna.`"""
    a, b = rng.sample(PEOPLE.split(), 2)
    one, two = rng.sample((*RELATIONS, *VERBS.split()), 2)
    return _unordered(a, b), _relation(a, b, one), _relation(a, b, two)


def _roles(rng: random.Random) -> tuple[str, Contraries, Contraries]:
    """Who did what to whom: that Anna called Ben leaves open whether Ben called Anna."""
    a, b = rng.sample(PEOPLE.split(), 2)
    verb = rng.choice(VERBS.split())
    return _unordered(a, b), _relation(a, b, verb), _relation(b, a, verb)


def _unordered(a: str, b: str) -> str:
    return " ".join(sorted((a, b)))


def _relation(a: str, b: str, words: str) -> Contraries:
    one, two = words.split("/")
    if words in VERBS.split():
        return (
            Fact(f"{a} {two} {b}.", f"{b} was {two} by {a}."),
            Fact(f"{a} did not {one} {b}.", f"{b} was not {two} by {a}."),
        )
    return Fact(f"{a} {one} {b}.", f"{b} {two} {a}."), Fact(f"{a} {two} {b}.", f"{b} {one} {a}.")


def _life(rng: random.Random) -> tuple[str, Contraries, Contraries]:
    """Where a person is, whether awake, how much they own, and when something happened to them."""
    name = rng.choice(PEOPLE.split())
    matters = [
        _whereabouts(rng, name),
        _waking(rng, name),
        *(_owning(rng, name, things) for things in rng.sample(POSSESSIONS.split(), 2)),
        *(_dating(rng, name, event) for event in rng.sample(EVENTS, 2)),
    ]
    one, two = rng.sample(matters, 2)
    return name, one, two


def _whereabouts(rng: random.Random, name: str) -> Contraries:
    return (
        Fact(f"{name} is in the {rng.choice(INDOORS.split())}.", f"{name} is indoors."),
        Fact(f"{name} is in the {rng.choice(OUTDOORS.split())}.", f"{name} is outdoors."),
    )


def _waking(rng: random.Random, name: str) -> Contraries:
    return (
        Fact(f"{name} is {rng.choice(AWAKE.split())}.", f"{name} is awake."),
        Fact(f"{name} is {rng.choice(ASLEEP.split())}.", f"{name} is asleep."),
    )


def _owning(rng: random.Random, name: str, things: str) -> Contraries:
    few, some, many = sorted(rng.sample(NUMBERS.split(), 3), key=NUMBERS.split().index)
    return (
        Fact(f"{name} has {many} {things}.", f"{name} has more than {some} {things}."),
        Fact(f"{name} has only {few} {things}.", f"{name} has fewer than {some} {things}."),
    )


def _dating(rng: random.Random, name: str, event: str) -> Contraries:
    early, middle, late = sorted(rng.sample(YEARS, 3))
    return (
        Fact(f"{name} {event} in {early}.", f"{name} {event} before {middle}."),
        Fact(f"{name} {event} in {late}.", f"{name} {event} after {middle}."),
    )


def _either_way(rng: random.Random, states: str) -> tuple[str, str]:
    yes, no = states.split("/")
    return (yes, no) if rng.random() < 0.5 else (no, yes)


Family = Callable[[random.Random], tuple[str, Contraries, Contraries]]  # a subject, and two independent matters of it
FAMILIES: tuple[Family, ...] = (*5 * [_thing], *2 * [_things], *2 * [_couple], _roles, *2 * [_life])
