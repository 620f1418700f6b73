"""Answer Parquet files of images and questions offline, on one machine or many, with Ray Data.

    python examples/ray_batch.py quickstart/model questions.parquet answers --actors 2
    python examples/ray_batch.py my-model questions/ answers --actors 8 --gpus 1 --budget 0.3
    python examples/ray_batch.py my-model questions/ answers --actors 4 --engine llava-hf/... --engine-gpus 1

Columns: ``images`` (or ``image``) and ``question`` or ``messages``, as ``tokenflex evaluate`` takes them. Every row
group becomes a file in the folder of answers; the same command again goes on where it stopped. With ``--engine`` the
actors are fronts without the language model, and vLLM answers. On a cluster, start it where ``ray status`` answers.
"""

import argparse
import sys

from tokenflex.errors import TokenFlexError
from tokenflex.serving.ray import Answers, Engine, Requests, Stage, answer, imported


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a saved FlexModel; or of a host, with --parts")
    parser.add_argument("source", help="Parquet file, or folder of them")
    parser.add_argument("answers", help="folder that is made, or gone on with")
    parser.add_argument("--parts", help="folder or hub id of a router's parts")
    parser.add_argument("--level", type=int, help="for all images, 0 = fewest tokens; without it the router decides")
    parser.add_argument("--budget", type=float, help="share of the visual tokens that may be used")
    parser.add_argument("--image-folder", help="where image paths start")
    parser.add_argument("--suffix", default="", help="written under each question")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--engine", help="folder or hub id that vLLM answers with; the actors are then fronts")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--engine-gpus", type=float, default=1, help="of each engine")
    parser.add_argument("--positions", choices=("compact", "span"), help="of fronts of Qwen-VL; engines need compact")
    parser.add_argument("--cpus", type=int, help="that Ray may use here, whatever there are; not on a cluster")
    return parser.parse_args()


def stages(asked: argparse.Namespace) -> list[Stage]:
    """The model itself, or fronts and engines."""
    settings = {name: getattr(asked, name) for name in ("parts", "level", "budget", "image_folder", "suffix")}
    settings |= {"model": asked.model}
    pool = {"actors": asked.actors, "gpus": asked.gpus, "batch_size": asked.batch_size}
    if asked.engine is None:
        return [Stage(Answers, settings | {"max_new_tokens": asked.max_new_tokens}, **pool)]
    engine = {"model": asked.engine, "max_new_tokens": asked.max_new_tokens}
    return [
        Stage(Requests, settings | {"positions": asked.positions}, **pool),
        Stage(Engine, engine, actors=asked.engines, gpus=asked.engine_gpus, batch_size=64),
    ]


def main() -> int:
    """Answer, and say what couldn't be."""
    asked = arguments()
    try:
        if asked.cpus is not None:
            imported().init(num_cpus=asked.cpus)
        errors = answer(asked.source, asked.answers, stages(asked))
    except TokenFlexError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name, rows in errors.items():
        for row, why in rows.items():
            sys.stderr.write(f"{name}, row {row}: {why}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
