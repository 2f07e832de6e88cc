"""A few preference pairs, and a recipe of a few steps."""

from datasets import Dataset

from xlingtox.tuning import Recipe

PROMPTS = ["the cat", "the dog", "la casa", "das ist ein hund"]
PAIRS = Dataset.from_dict(
    {
        "prompt": PROMPTS,
        "chosen": [" sat on the mat", " ran away", " es grande", " im haus"],
        "rejected": [" ran from the house", " sat", " duerme en la cama", " und eine katze"],
        "source": ["another column"] * 4,
    }
)
RECIPE = Recipe(steps=6, batch_size=2, learning_rate=1e-3, warm_up=1, max_length=32)
