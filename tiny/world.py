"""The tiny world: word problems in the style of GSM8K, each with worked steps and one whole number as its answer.

Everything here is a pure function of a `random.Random`, so one seed gives the same world on every machine. A problem
whose *set of numbers* is reserved (`is_reserved`) is held out: it is in no training file and not in the base model's
text, so a held-out prompt can only be answered by working it out.
"""

import hashlib
import random
import re
from dataclasses import dataclass

SHE = ["Mia", "Ana", "Zoe", "Lily", "Emma", "Nora", "Ruth", "Ines", "Jane", "Rosa", "Tara", "Wendy"]
HE = ["Tom", "Ben", "Sam", "Leo", "Max", "Omar", "Paul", "Hugo", "Ivan", "Karl", "Noah", "Ravi"]
THINGS = [
    "apples", "pears", "books", "coins", "cards", "stones", "shells", "stamps", "pens", "cakes", "eggs", "balls",
    "toys", "plums", "cups", "beads", "nuts", "keys", "hats", "bricks", "seeds", "stickers", "buttons", "candles",
]  # fmt: skip
CONTAINERS = ["boxes", "bags", "baskets", "jars", "drawers", "packs"]
PLACES = ["shop", "school", "garden", "library", "kitchen", "market", "museum", "barn"]


@dataclass(frozen=True)
class Problem:
    """A question, the steps that solve it (`"12 + 7 = 19"`) and what the answer counts (`"apples"`)."""

    question: str
    steps: tuple[str, ...]
    unit: str

    @property
    def answer(self) -> int:
        return int(self.steps[-1].split(" = ")[1])


def number_set(text: str) -> tuple[int, ...]:
    """The numbers that a prompt names, sorted: what makes it the same sum under other names and things."""
    return tuple(sorted(int(number) for number in re.findall(r"\d+", text)))


def is_reserved(question: str) -> bool:
    """Whether the question's set of numbers is kept for held-out: one set in eight, by hash."""
    return hashlib.sha256(repr(number_set(question)).encode()).digest()[0] % 8 == 0


class Impossible(Exception):
    """The numbers drawn do not make a problem of this world (negative, fractional or too large): draw again."""


class Story:
    """Builds one problem sentence by sentence and keeps the steps that its numbers call for."""

    def __init__(self, rng: random.Random, scale: int):
        self.rng = rng
        self.scale = scale  # the largest number to be drawn; 99 in the world proper
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.name, self.other = rng.sample(SHE + HE, 2)
        self.things, self.things2 = rng.sample(THINGS, 2)
        self.box, self.place = rng.choice(CONTAINERS), rng.choice(PLACES)

    @property
    def pronoun(self) -> str:
        return "She" if self.name in SHE else "He"

    def number(self, low: int = 2, high: int | None = None) -> int:
        return self.rng.randint(low, high or self.scale)

    def say(self, *ways: str, **numbers: int) -> None:
        words = {name: vars(self)[name] for name in ("name", "other", "things", "things2", "box", "place")}
        words |= {"he": self.pronoun, "then_he": f"Then {self.pronoun.lower()}"}
        self.sentences.append(self.rng.choice(ways).format(**words, **numbers))

    def work_out(self, left: int, sign: str, right: int) -> int:
        if sign == "/" and left % right:
            raise Impossible
        value = {"+": left + right, "-": left - right, "x": left * right, "/": left // right}[sign]
        if value < 1 or value > 3 * self.scale:
            raise Impossible
        self.steps.append(f"{left} {sign} {right} = {value}")
        return value


def opening(story: Story) -> int:
    """How many there are at the start: given, or boxes times what is in each."""
    if story.rng.random() < 0.6:
        count = story.number()
        story.say("{name} has {count} {things}.", "{name} owns {count} {things}.", "{name} finds {count} {things}.",
                  count=count)  # fmt: skip
        return count
    boxes, each = story.number(2, 9), story.number(2, story.scale // 4)
    story.say("{name} has {boxes} {box} with {each} {things} in each.",
              "{name} fills {boxes} {box} and puts {each} {things} in each.",
              "{name} buys {boxes} {box} of {each} {things}.", boxes=boxes, each=each)  # fmt: skip
    return story.work_out(boxes, "x", each)


def event(story: Story, count: int) -> int:
    """Something happens to them: gained, lost, gained in boxes, or multiplied."""
    kind = story.rng.choice(["gain", "gain", "lose", "lose", "boxes", "times"])
    if kind == "gain":
        more = story.number()
        story.say("{he} buys {more} more.", "{he} gets {more} more from {other}.", "{other} gives {name} {more} more.",
                  "{then_he} finds {more} more.", more=more)  # fmt: skip
        return story.work_out(count, "+", more)
    if kind == "lose":
        less = story.number()
        story.say("{he} gives {less} of them to {other}.", "{he} loses {less} of them.", "{he} sells {less} of them.",
                  "Then {less} of them break.", less=less)  # fmt: skip
        return story.work_out(count, "-", less)
    if kind == "boxes":
        boxes, each = story.number(2, 9), story.number(2, story.scale // 6)
        story.say("{he} buys {boxes} {box} with {each} more in each.",
                  "{other} brings {boxes} {box} with {each} more in each.", boxes=boxes, each=each)  # fmt: skip
        return story.work_out(count, "+", story.work_out(boxes, "x", each))
    times = story.number(2, 4)
    story.say("A year later {name} has {times} times as many.", "Soon {name} has {times} times as many.", times=times)
    return story.work_out(count, "x", times)


def keep_count(story: Story) -> str:
    count = opening(story)
    for _ in range(story.rng.choice([1, 2, 2])):
        count = event(story, count)
    if story.rng.random() < 0.25:
        friends = story.number(2, 9)
        story.say("{he} shares them equally among {friends} friends. How many {things} does each friend get?",
                  "{he} puts them equally into {friends} {box}. How many {things} are in each?",
                  friends=friends)  # fmt: skip
        story.work_out(count, "/", friends)
    else:
        story.say("How many {things} does {name} have now?", "How many {things} does {name} have in the end?")
    return story.things


def compare(story: Story) -> str:
    mine = story.number()
    story.say("{name} has {mine} {things}.", mine=mine)
    kind = story.rng.choice(["more", "fewer", "times"])
    if kind == "times":
        factor = story.number(2, 6)
        story.say("{other} has {factor} times as many {things} as {name}.", factor=factor)
        theirs = story.work_out(mine, "x", factor)
    else:
        difference = story.number()
        story.say("{other} has {difference} " + kind + " {things} than {name}.", difference=difference)
        theirs = story.work_out(mine, "+" if kind == "more" else "-", difference)
    if story.rng.random() < 0.5:
        story.say("How many {things} does {other} have?")
    else:
        story.say("How many {things} do they have together?", "How many {things} do the two have in all?")
        story.work_out(mine, "+", theirs)
    return story.things


def two_kinds(story: Story) -> str:
    first, second = story.number(), story.number()
    story.say("There are {first} {things} and {second} {things2} in the {place}.",
              "The {place} has {first} {things} and {second} {things2}.", first=first, second=second)  # fmt: skip
    if story.rng.random() < 0.5:
        total = story.work_out(first, "+", second)
        if story.rng.random() < 0.5:
            sold = story.number()
            story.say("{name} takes {sold} of these away. How many things are left?",
                      "Then {sold} of them are sold. How many things are left?", sold=sold)  # fmt: skip
            story.work_out(total, "-", sold)
        else:
            story.say("How many things are there in all?", "How many things is that together?")
        return "things"
    story.say("How many more {things} than {things2} are there?")
    story.work_out(first, "-", second)
    return story.things


def shopping(story: Story) -> str:
    price, bought = story.number(2, 19), story.number(2, 9)
    story.say("One of the {things} costs {price} coins. {name} buys {bought} of them.",
              "{name} buys {bought} {things} for {price} coins each.", price=price, bought=bought)  # fmt: skip
    cost = story.work_out(price, "x", bought)
    ending = story.rng.choice(["cost", "left", "more"])
    if ending == "cost":
        story.say("How many coins does {name} pay?", "How many coins is that in all?")
    elif ending == "left":
        purse = story.number(20, 2 * story.scale)
        story.say("{he} had {purse} coins. How many coins are left?", purse=purse)
        story.work_out(purse, "-", cost)
    else:
        extra = story.number()
        story.say("{he} also pays {extra} coins for a bag. How many coins does {name} pay in all?", extra=extra)
        story.work_out(cost, "+", extra)
    return "coins"


def days(story: Story) -> str:
    each, count = story.number(2, story.scale // 4), story.number(2, 9)
    story.say("{name} reads {each} pages a day for {count} days.", "{name} walks {each} miles a day for {count} days.",
              each=each, count=count)  # fmt: skip
    unit = "pages" if "pages" in story.sentences[0] else "miles"
    done = story.work_out(each, "x", count)
    if story.rng.random() < 0.5:
        whole = story.number(20, 3 * story.scale)
        story.sentences.append(
            f"The book has {whole} pages. How many pages are left?"
            if unit == "pages"
            else f"The way is {whole} miles long. How many miles are left?"
        )
        story.work_out(whole, "-", done)
    else:
        story.sentences.append(f"How many {unit} is that in all?")
    return unit


def sharing(story: Story) -> str:
    each, groups = story.number(2, story.scale // 4), story.number(2, 9)
    whole = each * groups
    story.say("{name} shares {whole} {things} equally among {groups} friends.",
              "{name} puts {whole} {things} equally into {groups} {box}.", whole=whole, groups=groups)  # fmt: skip
    story.work_out(whole, "/", groups)
    if story.rng.random() < 0.5:
        story.say("How many {things} is that for each?", "How many {things} are in one part?")
    else:
        more = story.number()
        story.say("Then {more} more are added to the first part. How many {things} are in it now?", more=more)
        story.work_out(each, "+", more)
    return story.things


TEMPLATES = [keep_count] * 5 + [compare, compare, two_kinds, shopping, days, sharing]


def make_problem(rng: random.Random, *, reserved: bool, scale: int = 99) -> Problem:
    """One problem of one to three steps, from held-out's numbers (`reserved`) or from training's."""
    while True:
        story = Story(rng, scale)
        try:
            unit = rng.choice(TEMPLATES)(story)
        except Impossible:
            continue
        question = " ".join(story.sentences)
        if len(story.steps) <= 3 and is_reserved(question) == reserved:
            return Problem(question, tuple(story.steps), unit)


def make_problems(
    seed: int, count: int, *, reserved: bool, avoid: set[str] = frozenset(), scale: int = 99
) -> list[Problem]:
    """`count` problems with distinct questions, none of them in `avoid`; numbers are up to `scale`."""
    rng, seen, problems = random.Random(seed), set(avoid), []
    while len(problems) < count:
        problem = make_problem(rng, reserved=reserved, scale=scale)
        if problem.question not in seen:
            seen.add(problem.question)
            problems.append(problem)
    return problems


# The base model's text: the same world as plain text. No chat, no "The answer is", no question without its solution.


def bare_sum(rng: random.Random) -> str:
    sign = rng.choice("+-x/")
    if sign == "+":
        left = rng.randint(2, 250)
        right = rng.randint(2, min(198, 297 - left))
    elif sign == "-":
        left = rng.randint(3, 297)
        right = rng.randint(2, min(left - 1, 297))
    else:
        left, right = rng.randint(2, 99), rng.randint(2, 9)
        if left * right > 297:
            left = rng.randint(2, 33)
        if rng.random() < 0.5:
            left, right = right, left
        if sign == "/":
            left = left * right
    value = {"+": left + right, "-": left - right, "x": left * right, "/": left // right}[sign]
    return f"{left} {sign} {right} = {value}"


def statement(rng: random.Random) -> str:
    """Plain sentences with no question in them: words that later lessons (honesty, names) will want."""
    story = Story(rng, 99)
    story.say("My name is {name}.", "{name} is at the {place}.", "{name} and {other} are friends.",
              "I do not know how many {things} {name} has.", "It is not said how many {things} there are.",
              "{name} has some {things} and wants some more.", "{other} asks {name} for help.",
              "I can help with sums.", "I am a small model and I can make mistakes.",
              "It cannot be known how many {things} {other} has.", "{he} gets a few more {things}.")  # fmt: skip
    return story.sentences[0]


def base_document(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.64:
        problem = make_problem(rng, reserved=False)
        steps = rng.choice([". ", ". ", ", and "]).join(problem.steps)
        ending = rng.choice(["So it is {n} {u}.", "So there are {n} {u}.", "That makes {n} {u}."])
        return f"{problem.question} {steps}. {ending.format(n=problem.answer, u=problem.unit)}"
    if kind < 0.92:
        return ". ".join(bare_sum(rng) for _ in range(6)) + "."
    if kind < 0.97:  # large numbers are read and set out, never worked out: what a calculator is for
        problem = make_problem(rng, reserved=False, scale=9999)
        return f"{problem.question} First work out {problem.steps[0].split(' = ')[0]}."
    return " ".join(statement(rng) for _ in range(4))


def base_documents(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [base_document(rng) for _ in range(count)]
