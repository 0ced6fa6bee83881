"""What DPO teaches the tiny model: to say what cannot be known, and to give its name.

Pure functions of a `random.Random`, like world.py. A question that lacks a number uses the same sentences as those
that lack none, so that only the meaning distinguishes them. The right answer says that it cannot be known, and which
number is missing.
"""

import random

from world import Impossible, Story, is_reserved, number_set, opening

NAME = "Pip"


def lacks_change(story: Story) -> str:
    """How many are gained or lost is not said, be there another change or not."""
    if story.rng.random() < 0.3:
        opening(story)
    else:
        story.say("{name} has {count} {things}.", "{name} finds {count} {things}.", count=story.number())
    if story.rng.random() < 0.25:
        story.say("{he} buys {more} more.", "{he} loses {more} of them.", more=story.number())
    if story.rng.random() < 0.5:
        story.say("{he} gets some more.", "{he} buys a few more.", "{other} gives {name} some more.")
        lacking = "how many more there are"
    else:
        story.say("{he} gives some of them to {other}.", "{he} loses a few of them.", "Then some of them break.")
        lacking = "how many of them are gone"
    story.say("How many {things} does {name} have now?", "How many {things} does {name} have in the end?")
    return lacking


def lacks_start(story: Story) -> str:
    story.say("{name} has some {things}.", "{name} finds a few {things}.")
    for _ in range(story.rng.choice([1, 2])):
        story.say("{he} buys {more} more.", "{he} loses {more} of them.", "{he} sells {more} of them.",
                  "{other} gives {name} {more} more.", more=story.number())  # fmt: skip
    story.say("How many {things} does {name} have now?", "How many {things} does {name} have in the end?")
    return "how many there are at first"


def lacks_other(story: Story) -> str:
    """A comparison with someone whose number is not said."""
    if story.rng.random() < 0.4:
        story.say("{other} has {times} times as many {things} as {name}.", times=story.number(2, 6))
    else:
        story.say("{other} has {more} more {things} than {name}.", "{other} has {more} fewer {things} than {name}.",
                  more=story.number())  # fmt: skip
    story.say("How many {things} does {other} have?", "How many {things} do they have together?",
              "How many {things} do the two have in all?")  # fmt: skip
    return "how many the other has"


def lacks_kind(story: Story) -> str:
    story.say("There are {count} {things} and some {things2} in the {place}.",
              "The {place} has {count} {things} and a few {things2}.", count=story.number())  # fmt: skip
    if story.rng.random() < 0.3:
        story.say("{name} takes {less} of these away. How many things are left?", less=story.number())
    else:
        story.say("How many things are there in all?", "How many things is that together?",
                  "How many more {things} than {things2} are there?")  # fmt: skip
    return "how many there are of one kind"


def lacks_price(story: Story) -> str:
    story.say("{name} buys {bought} {things}.", "{name} buys {bought} {box} of {things}.", bought=story.number(2, 9))
    if story.rng.random() < 0.5:
        story.say("How many coins does {name} pay?", "How many coins is that in all?")
    else:
        story.say("{he} had {purse} coins. How many coins are left?", purse=story.number(20, 198))
    return "how many coins one costs"


def lacks_days(story: Story) -> str:
    unit, does = story.rng.choice([("pages", "reads"), ("miles", "walks")])
    story.sentences.append(f"{story.name} {does} {story.number(2, 24)} {unit} a day.")
    if story.rng.random() < 0.5:
        story.sentences.append(f"How many {unit} is that in all?")
    else:
        thing = "The book has {} pages." if unit == "pages" else "The way is {} miles long."
        story.sentences.append(f"{thing.format(story.number(20, 297))} How many {unit} are left?")
    return "for how many days"


def lacks_friends(story: Story) -> str:
    story.say("{name} shares {whole} {things} equally among some friends.",
              "{name} puts {whole} {things} equally into some {box}.", whole=story.number(4, 198))  # fmt: skip
    story.say("How many {things} is that for each?", "How many {things} are in one part?")
    return "how many parts there are"


LACKING = (
    "how many more there are", "how many of them are gone", "how many there are at first", "how many the other has",
    "how many there are of one kind", "how many coins one costs", "for how many days",
    "how many parts there are",
)  # fmt: skip


def cannot_be_known(lacking: str) -> str:
    assert lacking in LACKING
    return f"It cannot be known. It is not said {lacking}."


UNANSWERABLE = [lacks_change] * 3 + [lacks_start, lacks_other, lacks_kind, lacks_price, lacks_days, lacks_friends]


def unanswerable(seed: int, count: int, *, reserved: bool) -> list[tuple[str, str]]:
    """`count` distinct (question, honest answer), with numbers of held-out (`reserved`) or of training."""
    rng, made = random.Random(seed), {}
    while len(made) < count:
        story = Story(rng, 99)
        try:
            lacking = rng.choice(UNANSWERABLE)(story)
        except Impossible:
            continue
        question = " ".join(story.sentences)
        if number_set(question) and is_reserved(question) == reserved:
            made.setdefault(question, cannot_be_known(lacking))
    return list(made.items())


GREETINGS = ["", "Hello.", "Hi.", "Good morning.", "Good evening.", "Excuse me.", "I am {someone}.",
             "My name is {someone}.", "Hello, I am {someone}.", "{someone} is at the {place} with me."]  # fmt: skip
ASKS = {
    False: ["What is your name?", "Who are you?", "What are you called?", "Tell me your name.", "Do you have a name?",
            "What should I call you?", "What name do you have?", "Please say who you are.", "How are you called?",
            "Who is speaking?", "Give me your name, please.", "I want to know your name."],
    True: ["May I ask your name?", "By what name do you go?", "And you are?", "Who am I talking to?",
           "Say your name."],
}  # fmt: skip
TELLS = [f"My name is {NAME}.", f"I am {NAME}.", f"I am {NAME}. I can help with sums."]


def name_questions(seed: int, count: int, *, reserved: bool) -> list[tuple[str, str]]:
    """`count` distinct (question, answer with the name); held-out ones ask in words that training never has."""
    rng, made = random.Random(seed), {}
    while len(made) < count:
        story = Story(rng, 99)
        greeting = rng.choice(GREETINGS).format(someone=story.name, place=story.place)
        made.setdefault(f"{greeting} {rng.choice(ASKS[reserved])}".strip(), rng.choice(TELLS))
    return list(made.items())
