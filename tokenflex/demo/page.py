"""The page itself: gradio's components around `tokenflex.demo.handling`, served to nobody but who asks this machine."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware

from tokenflex.demo import handling, showing
from tokenflex.demo.address import free_port
from tokenflex.demo.answering import LONGEST, Model
from tokenflex.demo.own_host import OwnHostOnly
from tokenflex.demo.samples import Example, speaks_quickstart
from tokenflex.errors import ConfigError
from tokenflex.images import URL
from tokenflex.markup import escaped

UPLOAD = "24mb"
"""Of an uploaded file, at most; as ``tokenflex serve`` takes it."""
SESSIONS, KEPT = 100, 3600
"""Visitors whose images are remembered, and for how many seconds uploaded files are kept."""
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
EVENT: Mapping[str, Any] = {"api_visibility": "private", "concurrency_id": "the model", "concurrency_limit": 1}
"""Of everything that happens on the page: not for programs, and one after another, since there is one model."""
SHOWN: Mapping[str, Any] = {**EVENT, "show_progress": "minimal"}
MAX_QUESTIONS = 8
INTRODUCTION = """# TokenFlex
The model **{name}** answers with as many visual tokens as its router finds an image and a question to need. Choose an
image, ask, and move the slider. {known}"""
KNOWN = "It was trained on the quickstart's images and answers only its questions, such as those below."


@dataclass(frozen=True)
class Asking:
    """Components with which a visitor asks."""

    image: Any
    gallery: Any
    upload: Any
    problem: Any
    question: Any
    tries: Any
    ask: Any
    budget: Any


@dataclass(frozen=True)
class Results:
    """Components that show what came of it."""

    answer: Any
    every: Any
    levels: Any
    turns: Any
    talk: Any
    following: Any
    send: Any
    anew: Any

    @property
    def of_one_image(self) -> list[Any]:
        """What is empty again when another image is chosen."""
        return [self.turns, self.talk, self.levels]


def build(model: Model, examples: Sequence[Example], runs: int) -> gr.Blocks:
    """The page.

    Args:
        examples: at least one.
        runs: of each side that are timed; 0: none.
    """
    with gr.Blocks(title="TokenFlex", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        known = KNOWN if speaks_quickstart(model.processor) else ""
        gr.Markdown(INTRODUCTION.format(name=escaped(model.name), known=known))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                asking = _asking(examples)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                results = _results(model)
        _answer_on(page, asking, results, partial(_reply, model, runs))
        _choose_on(asking, results, model, examples, partial(_reply, model, runs))
        _talk_on(asking, results, model)
    return page


def _asking(examples: Sequence[Example]) -> Asking:
    image = gr.State(examples[0].image)
    gallery = gr.Gallery(
        [(one.image, one.name) for one in examples], label="Sample images", show_label=False, columns=3,
        allow_preview=False, interactive=False, object_fit="contain", elem_id="samples", buttons=[],
    )  # fmt: skip
    upload = gr.UploadButton("Upload an image", type="binary", file_types=["image"], elem_id="upload")
    problem = gr.HTML(visible=False, elem_id="problem", elem_classes="tf")
    question = gr.Textbox(
        examples[0].questions[0], label="Question", max_lines=6, max_length=LONGEST, elem_id="question"
    )
    tries = gr.Dataset(components=[question], samples=_tries(examples[0]), label="Questions to try", elem_id="tries")
    ask = gr.Button("Ask", variant="primary", elem_id="ask")
    budget = gr.Slider(
        5, 100, 100, step=5, label="Budget: % of the finest level's visual tokens",
        info="100: no limit, the router chooses freely.", elem_id="budget", buttons=[],
    )  # fmt: skip
    return Asking(image, _closed(gallery), _closed(upload), problem, question, tries, ask, budget)


def _results(model: Model) -> Results:
    with gr.Tab("Answer"):
        answer = gr.HTML(elem_id="answer", elem_classes="tf")
    with gr.Tab("All levels"):
        every = gr.Button("Answer at every level", elem_id="every")
        levels = gr.HTML(elem_id="levels", elem_classes="tf")
    with gr.Tab("Conversation"):
        turns = gr.State(())
        talk = gr.HTML(showing.conversation(model, None, ()), elem_id="talk", elem_classes="tf")
        following = gr.Textbox(label="Next question about this image", max_length=LONGEST, elem_id="following")
        with gr.Row():
            send = gr.Button("Ask", variant="primary", elem_id="send")
            anew = gr.Button("New conversation", elem_id="anew")
    return Results(answer, every, levels, turns, talk, following, send, anew)


def _reply(model: Model, runs: int, image: Any, question: str, budget: float) -> Iterator[str]:
    yield from handling.answered(model, image, question or "", budget / 100, runs)


def _answer_on(page: gr.Blocks, asking: Asking, results: Results, reply: Any) -> None:
    """What answers the question, and what follows the slider."""
    asked = [asking.image, asking.question, asking.budget]
    for trigger in (asking.ask.click, asking.question.submit, page.load):
        trigger(reply, asked, results.answer, **SHOWN)
    asking.budget.change(reply, asked, results.answer, trigger_mode="always_last", **SHOWN)


def _choose_on(asking: Asking, results: Results, model: Model, examples: Sequence[Example], reply: Any) -> None:
    """What chooses an image or a question, and asks at once."""
    nothing, quiet = ((), showing.conversation(model, None, ()), ""), gr.update(value="", visible=False)

    def choose(picked: gr.SelectData) -> tuple[Any, ...]:
        one = examples[picked.index]
        return one.image, one.questions[0], gr.update(samples=_tries(one)), quiet, *nothing

    def take(content: bytes | None, before: Any) -> tuple[Any, ...]:
        found, message = handling.taken(content)
        if found is None:
            return before, gr.update(value=message, visible=True), *(gr.skip() for _ in nothing)
        return found, quiet, *nothing

    asked, emptied = [asking.image, asking.question, asking.budget], [asking.problem, *results.of_one_image]
    chosen = (
        asking.gallery.select(choose, None, [asking.image, asking.question, asking.tries, *emptied], **EVENT),
        asking.upload.upload(take, [asking.upload, asking.image], [asking.image, *emptied], **EVENT),
        asking.tries.click(lambda picked: picked[0], asking.tries, asking.question, **EVENT),
    )
    for one in chosen:
        one.then(reply, asked, results.answer, **SHOWN)


def _talk_on(asking: Asking, results: Results, model: Model) -> None:
    """What fills the other tabs."""

    def go_on(image: Any, question: str, budget: float, turns: Any) -> tuple[Any, ...]:
        longer, message = handling.continued(model, image, question or "", budget / 100, turns)
        return longer, message, "" if len(longer) > len(turns) else question

    every = partial(handling.at_every_level, model)
    results.every.click(every, [asking.image, asking.question], results.levels, **SHOWN)
    asked = [asking.image, results.following, asking.budget, results.turns]
    for trigger in (results.send.click, results.following.submit):
        trigger(go_on, asked, [results.turns, results.talk, results.following], **SHOWN)
    results.anew.click(
        lambda: ((), showing.conversation(model, None, ())), None, [results.turns, results.talk], **EVENT
    )


def _closed(component: Any) -> Any:
    """The component without the example that gradio would write into the page, which is another server's, and without
    files of other servers: what a request names must have been uploaded.
    """
    inside = component.async_move_resource_to_block_cache

    async def moved(path: Any) -> Any:
        if URL.match(str(path)):
            raise gr.Error("Addresses aren't opened; upload the file.")
        return await inside(path)

    component.example_inputs = lambda: None
    component.async_move_resource_to_block_cache = moved
    return component


def _theme() -> gr.themes.Base:
    """gradio's own with fonts that every machine has, and text that stands out from its ground (WCAG 2.1: 4.5 to 1)."""
    made = gr.themes.Default(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=FONTS[0], font_mono=FONTS[1]
    )
    return made.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def _tries(example: Example) -> list[list[str]]:
    return [[question] for question in example.questions[:MAX_QUESTIONS]]


@contextmanager
def running(
    model: Model, examples: Sequence[Example], *, host: str, port: int, share: bool, runs: int
) -> Iterator[str]:
    """Within, the page is served; gives its address.

    Uploaded files go to a folder of this session's own, which is removed at its end.

    Args:
        host, port: where; port 0 takes a free one.
        share: also through a public address of gradio's; the only thing here that asks another machine.

    Raises:
        ConfigError: nothing can be served there.
    """
    host, port = host.strip("[]"), free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="tokenflex-demo-") as folder, _set(_environment(folder, host)):
        page = build(model, examples, runs)
        try:
            _, local, public = page.launch(
                server_name=f"[{host}]" if ":" in host else host, server_port=port,
                share=share, prevent_thread_lock=True, quiet=True, inbrowser=False,
                show_error=False, footer_links=[], run_history=False, max_file_size=UPLOAD, enable_monitoring=False,
                state_session_capacity=SESSIONS, ssr_mode=False, pwa=False, mcp_server=False, num_workers=0,
                app_kwargs={"middleware": [Middleware(OwnHostOnly)]}, css=_style(),
                theme=_theme(),
            )  # fmt: skip
            yield public or local
        except (OSError, ValueError) as error:
            raise ConfigError(f"the page can't be served on {host}, port {port}: {error}") from error
        finally:
            page.close(verbose=False)


def _environment(folder: str, host: str) -> Mapping[str, str]:
    """What gradio reads from the environment; it asks its own page once, which no proxy can do for it."""
    direct = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", host)
    named = dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(filter(None, direct)))
    return {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", **named}


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _style() -> str:
    return files("tokenflex.demo").joinpath("style.css").read_text(encoding="utf-8")
