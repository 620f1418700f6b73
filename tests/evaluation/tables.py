"""Made-up evaluations: scores and tokens as tables, written as a pass would."""

import json

from tokenflex.evaluation.questions import Question
from tokenflex.evaluation.records import AnswerWriter, Record, Shown, begin_evaluation


def made(folder, settings, kinds=None, of=8, levels=None, images=None):
    """A finished evaluation.

    Args:
        settings: name -> (scores, tokens, levels); the levels, a list per sample, are optional.
        levels: of the model; default: as many as there are ``level:N``.
        images: encoded, by place.
    """
    count = len(next(iter(settings.values()))[0])
    kinds = kinds or [""] * count
    questions = [Question(i, f"q{i}", kinds[i], f"w{i}", (f"w{i}",)) for i in range(count)]
    known = levels or sum(name.startswith("level:") for name in settings)
    finger = {"host": {"model_type": "tiny"}, "metric": "exact-match", "max_new_tokens": 4}
    manifest = {"model": "a model", "data": "some data", "levels": known, "fingerprint": finger}
    shown = [Shown(question, (images or {}).get(question.place, ())) for question in questions]
    begin_evaluation(folder, manifest, lambda: shown)
    records = []
    for name, (scores, tokens, *chosen) in settings.items():
        for i in range(count):
            own = [int(name.split(":")[1])] if name.startswith("level:") else [0]
            picked = chosen[0][i] if chosen else own
            records.append(Record(i, f"q{i}", name, f"answer {i}", float(scores[i]), picked, int(tokens[i]), of))
    AnswerWriter(folder, 0).write(records)
    return folder


def unsealed(folder):
    """Take the digest off the manifest, as evaluations of older versions have none."""
    told = json.loads((folder / "manifest.json").read_text())
    told.pop("digest", None)
    (folder / "manifest.json").write_text(json.dumps(told))
