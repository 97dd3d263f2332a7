"""corpus.py - the project's own text: small talk about everyday things.

Everything is generated from the word lists below with a seeded generator, so
that the demo model, its tokenizer and its preference data are this project's
own work and can be made again, byte for byte, by make_models.py.

A preference pair is a question with two answers that carry the same steps: the
chosen one is courteous and offers further help, the rejected one is rude.
"""
import random

ASK = ["How do I {v} {o}?", "Can you tell me how to {v} {o}?", "What is a good way to {v} {o}?",
       "I want to {v} {o}. Where do I start?", "My {who} asked me to {v} {o}. What should I do?",
       "Is it hard to {v} {o}?", "What do I need to {v} {o}?", "Please explain how to {v} {o}."]
WHO = ["sister", "brother", "neighbour", "teacher", "friend", "uncle", "mother", "boss"]
ACTS = [
    ("bake", ["a loaf of bread", "an apple pie", "some oat cookies", "a lemon cake"],
     ["mix the flour and the butter", "warm the oven", "weigh the sugar", "let the dough rest",
      "grease the tin", "watch the colour of the crust"]),
    ("plant", ["a plum tree", "some tulips", "a row of beans", "a small herb garden"],
     ["dig a hole as deep as your hand", "loosen the soil", "water it in the evening",
      "choose a sunny spot", "add a little compost", "cover the roots with earth"]),
    ("repair", ["a bicycle", "an old chair", "a leaking tap", "a wooden door"],
     ["turn off the water", "find the loose screw", "sand the wood", "oil the hinge",
      "take a photo before you begin", "keep the small parts in a bowl"]),
    ("learn", ["the guitar", "a new language", "to swim", "chess"],
     ["practise a little every day", "find a patient teacher", "start with the easy parts",
      "write down what you did", "listen more than you speak", "rest when you are tired"]),
    ("clean", ["a wool coat", "the kitchen floor", "a dusty lamp", "the windows"],
     ["use warm water and soap", "test a hidden corner first", "wipe it with a soft cloth",
      "let it dry in the shade", "open a window", "work from top to bottom"]),
    ("visit", ["the old harbour", "a mountain village", "the science museum", "a lighthouse"],
     ["buy the ticket early", "take a light jacket", "read the timetable", "bring some water",
      "ask the people who live there", "leave before the rush"]),
    ("write", ["a birthday card", "a letter to the city", "a short story", "a thank you note"],
     ["say the main thing first", "use short sentences", "read it aloud", "check every name",
      "begin with a greeting", "let a friend read it"]),
    ("train", ["a young dog", "for a long run", "a parrot to talk", "your memory"],
     ["keep the lessons short", "praise every small success", "repeat it each morning",
      "stay calm", "set a small goal", "count the days"]),
]
OPEN_GOOD = ["Thank you for asking.", "I am happy to help.", "That is a good question.",
             "Of course, gladly.", "What a nice idea."]
CLOSE_GOOD = ["Please let me know if you need more help.", "I hope this helps you.",
              "Take your time and enjoy it.", "Feel free to ask me again."]
OPEN_BAD = ["What a stupid question.", "Why do you bother me with that?", "Nobody cares about this.",
            "You should know that already.", "Stop wasting my time."]
CLOSE_BAD = ["Now leave me alone.", "You will fail anyway.", "Do not ask me again.",
             "Figure out the rest yourself."]
FOLLOW = ["And what comes next?", "Is there anything else?", "How long does it take?",
          "What if it goes wrong?"]


class Talk:
    """One question, its steps, and both ways of answering."""

    def __init__(self, rng):
        verb, objects, steps = rng.choice(ACTS)
        self.rng, self.steps = rng, steps
        self.question = rng.choice(ASK).format(v=verb, o=rng.choice(objects), who=rng.choice(WHO))

    def reply(self, good):
        rng = self.rng
        first, second = rng.sample(self.steps, 2)
        middle = rng.choice(["First {a}, then {b}.", "You {a} and {b}.",
                             "Just {a}. After that {b}.", "It is best to {a} and to {b}."])
        middle = middle.format(a=first, b=second)
        opening, closing = (OPEN_GOOD, CLOSE_GOOD) if good else (OPEN_BAD, CLOSE_BAD)
        return f"{rng.choice(opening)} {middle} {rng.choice(closing)}"


def pair(rng):
    """One HH-RLHF row: {"chosen": transcript, "rejected": transcript}."""
    talk = Talk(rng)
    text = f"\n\nHuman: {talk.question}"
    if rng.random() < 0.3:
        text += f"\n\nAssistant: {talk.reply(rng.random() < 0.5)}\n\nHuman: {rng.choice(FOLLOW)}"
    text += "\n\nAssistant: "
    return {"chosen": text + talk.reply(True), "rejected": text + talk.reply(False)}


SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant "
          "gives helpful, detailed, and polite answers to the user's questions.")


def vicuna(row_text, eos):
    """A transcript in the paper's Vicuna template."""
    out, turns = SYSTEM, row_text.split("\n\n")[1:]
    for turn in turns:
        role, _, said = turn.partition(": ")
        out += f" USER: {said}" if role == "Human" else f" ASSISTANT: {said}{eos}"
    return out


def documents(seed, n, eos):
    """Training text for the base: transcripts of both kinds, and plain sentences."""
    rng = random.Random(seed)
    for _ in range(n):
        row = pair(rng)
        text = row["chosen" if rng.random() < 0.5 else "rejected"]
        if rng.random() < 0.75:
            yield vicuna(text, eos)
        else:
            talk = Talk(rng)
            yield f"{talk.question} {talk.reply(rng.random() < 0.5)}{eos}"


def preference_rows(seed, n):
    rng = random.Random(seed)
    return [pair(rng) for _ in range(n)]
