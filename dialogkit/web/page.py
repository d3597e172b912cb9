"""The chat page, in Gradio."""

# No `from __future__ import annotations`: Gradio reads the annotations of what it calls.

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.chat import MAX_MESSAGE, Chatbot, ChatSession, Reply
from dialogkit.dialogues import USER, Turn
from dialogkit.pdp.characters import MAX_NAME
from dialogkit.pdp.files import CHARACTER_FILES
from dialogkit.serving.engine import Answer, Engine
from dialogkit.serving.settings import ServerSettings

from .cast import UPLOADED, Cast, Controls
from .confined import Confined
from .conversation import SHOWN, Conversation, friendly
from .evidence import NOTHING_YET, why_html
from .uploads import MAX_UPLOAD, read_upload, upload_check

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

__all__ = ["chat_page", "load_gradio", "mount_chat"]

_STYLE = Path(__file__).with_name("page.css")
_MAX_WAITING = 256

# Whatever Gradio's own scripts may try, the browser loads nothing from and sends nothing to another host.
# Gradio compiles its templates in the browser, hence 'unsafe-eval'; no template of ours holds anyone's text.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_HEAD = (
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="referrer" content="no-referrer">'
)

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<path fill="#14b8a6" d="M2 2h12v9H7l-3 3v-3H2z"/></svg>'
)

# On a phone the panel stands below the window's edge, and grows a moment after it was opened.
_SHOW_WHY = """() => {
  const panel = document.getElementById("dk-why");
  const grown = new ResizeObserver(() => panel.scrollIntoView({behavior: "smooth"}));
  grown.observe(panel);
  setTimeout(() => grown.disconnect(), 2000);
}"""

SECONDS_KEPT = 3600
"""How long a conversation is kept after its page was closed."""

_SWEEP, _UPLOAD_KEPT = 60, 300
"""Seconds between two looks for old uploads, and how long one is kept."""

VISITORS_KEPT = 200
"""Visitors of whom Gradio keeps what their pages showed."""

# The transcript never becomes a file on the server.
_DOWNLOAD = """(text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


def mount_chat(app: "FastAPI", *, path: str = "/chat") -> None:
    """Adds the chat page to a server of chatbots, and sends visitors of its root there.

    The page talks with the server's bots through its engine, so it shares its limits, and stands behind the
    server's key.

    Args:
        app: What :func:`~dialogkit.serving.create_app` made.
        path: Where the page stands.

    Raises:
        ImportError: Gradio is not installed (extra ``web``).
    """
    gr = load_gradio()
    from fastapi import Depends
    from fastapi.responses import RedirectResponse, Response
    from starlette.routing import Mount

    app.add_api_route("/", lambda: RedirectResponse(f"{path}/"), include_in_schema=False)
    icon = Response(_ICON, media_type="image/svg+xml")
    app.add_api_route("/favicon.ico", lambda: icon, include_in_schema=False)
    gr.mount_gradio_app(
        app,
        chat_page(app.state.bots, engine=app.state.engine, timeout=app.state.settings.timeout),
        path,
        app_kwargs={"dependencies": [Depends(upload_check())]},
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(
            primary_hue="teal",
            secondary_hue="teal",
            neutral_hue="slate",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        css_paths=_STYLE,
        head=_HEAD,
    )
    # An open page keeps a connection on which Gradio notices that it was closed.
    page: Any = next(route.app for route in app.routes if isinstance(route, Mount) and route.path == path)
    page.add_middleware(Confined)
    app.state.on_shutdown.append(page.stop_event.set)


def chat_page(
    bots: Mapping[str, Chatbot], *, engine: Engine | None = None, timeout: float = ServerSettings.timeout
) -> "gradio.Blocks":
    """The page, to be mounted by :func:`mount_chat`.

    Every visitor has a conversation of their own. Messages and replies are shown as they are: neither HTML
    nor Markdown in them means anything.

    Args:
        bots: Chatbots by key; the first one is met first. If one of them is a
            :class:`~dialogkit.pdp.PDPChatbot`, visitors may also talk with a character of their own, played
            by that bot's models.
        engine: Runs the bots; None makes one.
        timeout: Seconds after which a reply is given up, waiting included.

    Raises:
        ImportError: Gradio is not installed (extra ``web``).
        ValueError: There is no bot.
    """
    return _Page(Cast(bots), engine or Engine(), timeout).build()


def load_gradio() -> Any:
    """Gradio, imported when it is needed.

    Raises:
        ImportError: It is not installed; the message says how to.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the chat page needs Gradio: pip install 'dialogkit-robustkit[web]'") from error
    return gradio


class _Page:
    """The parts of the page and what happens when they are used."""

    def __init__(self, cast: Cast, engine: Engine, timeout: float) -> None:
        self.gr = load_gradio()
        self.cast = cast
        self.engine = engine
        self.timeout = timeout

    # Layout -------------------------------------------------------------------------------------------------

    def build(self) -> "gradio.Blocks":
        gr = self.gr
        first = Conversation(self.cast.first)
        controls = self.cast.controls(first.who)
        page: gradio.Blocks = gr.Blocks(
            title="dialogkit", fill_width=True, analytics_enabled=False, delete_cache=(_SWEEP, _UPLOAD_KEPT)
        )
        # What else Gradio keeps of a visitor goes when so many others have come.
        page.state_session_capacity = VISITORS_KEPT
        with page:
            self.conversation = gr.State(first, time_to_live=SECONDS_KEPT)
            with gr.Row(elem_id="dk-room"):
                with gr.Column(scale=5, min_width=300, elem_id="dk-talk"):
                    self.heading = self._html(self._heading(first))
                    self.chat = gr.Chatbot(
                        label="Conversation",
                        show_label=False,
                        height="100%",
                        elem_id="dk-chat",
                        layout="bubble",
                        render_markdown=False,
                        allow_tags=False,
                        allow_file_downloads=False,
                        latex_delimiters=[],
                        group_consecutive_messages=False,
                        feedback_options=None,
                        buttons=[],
                        placeholder="Say hello.",
                    )
                    self.notice = self._html("", elem_id="dk-notice")
                    self.message = gr.Textbox(
                        show_label=False,
                        label="Message",
                        placeholder="Your message",
                        lines=1,
                        max_lines=6,
                        max_length=MAX_MESSAGE,
                        autofocus=True,
                        submit_btn=True,
                        container=False,
                        elem_id="dk-message",
                    )
                    with gr.Row(elem_id="dk-actions"):
                        self.reset = gr.Button("New conversation", size="sm")
                        self.save = gr.Button("Save as JSON", size="sm")
                    self.saved = gr.Textbox(visible="hidden", label="Transcript")
                with gr.Column(scale=3, min_width=300, elem_id="dk-side"):
                    self.who = self._dropdown(first)
                    with gr.Accordion(
                        "Your own character",
                        open=False,
                        visible=self.cast.takes_characters,
                        elem_id="dk-own",
                    ):
                        self._html(
                            '<p class="dk-dim">A character card (V2 or V3, .json or .png), dialogkit\'s own '
                            ".json, or lines as .tsv or .txt. It stays in this conversation.</p>"
                        )
                        self.name = gr.Textbox(
                            label="Name",
                            info="Only for .txt, and for a .tsv with several names",
                            max_length=MAX_NAME,
                        )
                        self.file = gr.UploadButton(
                            "Choose a file", file_types=[*CHARACTER_FILES], size="sm", elem_id="dk-file"
                        )
                    with gr.Accordion("Settings", open=False, elem_id="dk-settings"):
                        self.matcher = gr.Radio(
                            [*controls.matchers],
                            value=controls.matcher,
                            visible=bool(controls.matchers),
                            label="Matcher",
                            info="Which turns the character's lines are shown to answer",
                        )
                        self.temperature = gr.Slider(
                            0,
                            2,
                            value=controls.temperature or 0,
                            step=0.05,
                            visible=controls.temperature is not None,
                            label="Temperature",
                            info="0 always takes the likeliest word",
                        )
                        self.fixed = self._html(
                            '<p class="dk-dim">Nothing can be changed about this one.</p>',
                            visible=controls == Controls(),
                        )
                    with gr.Accordion("Why this reply", open=False, elem_id="dk-why") as self.panel:
                        self.why = self._html(NOTHING_YET)
            self._connect()
        page.queue(max_size=_MAX_WAITING, api_open=False, default_concurrency_limit=None)
        return page

    def _connect(self) -> None:
        gr = self.gr
        sending = self.message.submit(
            self.send,
            [self.message, self.matcher, self.temperature, self.conversation],
            [self.conversation, self.chat, self.message, self.notice, self.why],
            show_progress="hidden",
            api_visibility="private",
        )
        # An error that nobody foresaw: Gradio says so, and the page goes back to what is known.
        sending.failure(
            self.shown, self.conversation, [self.chat, self.message], queue=False, api_visibility="private"
        )
        self.message.stop(
            self.shown,
            self.conversation,
            [self.chat, self.message],
            cancels=[sending],
            queue=False,
            api_visibility="private",
        )
        everything = [
            self.conversation,
            self.who,
            self.heading,
            self.chat,
            self.message,
            self.notice,
            self.why,
            self.matcher,
            self.temperature,
            self.fixed,
        ]
        self.who.input(
            self.pick,
            [self.who, self.conversation],
            everything,
            cancels=[sending],
            show_progress="hidden",
            api_visibility="private",
        )
        self.file.upload(
            self.add,
            [self.file, self.name, self.conversation],
            [*everything, self.file],
            cancels=[sending],
            show_progress="hidden",
            api_visibility="private",
        )
        self.reset.click(
            self.forget,
            self.conversation,
            [self.conversation, self.chat, self.message, self.notice, self.why],
            cancels=[sending],
            show_progress="hidden",
            api_visibility="private",
        )
        self.save.click(
            self.export, self.conversation, self.saved, show_progress="hidden", api_visibility="private"
        ).then(None, self.saved, None, js=_DOWNLOAD)

        # Gradio gives the event to whoever is annotated so.
        def clicked(conversation: Conversation, event: gr.SelectData) -> dict[Any, Any]:  # type: ignore[name-defined]
            return self.explain(conversation, event.index)

        self.chat.select(
            clicked,
            self.conversation,
            [self.panel, self.why],
            show_progress="hidden",
            api_visibility="private",
        ).then(None, None, None, js=_SHOW_WHY)

    # What happens -------------------------------------------------------------------------------------------

    async def send(
        self, text: str, matcher: str | None, temperature: float, conversation: Conversation
    ) -> AsyncGenerator[dict[Any, Any], None]:
        """A message is sent: the reply comes piece by piece."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        try:
            asked = conversation.asked(text)
            bot = self._bot(conversation, matcher, temperature)
            waiting = _view((*asked, Turn(bot.name, "…")))
            yield {self.chat: waiting, self.message: self._composer("", busy=True), self.notice: ""}
            said = ""
            reply: Reply | None = None
            async with aclosing(self.engine.stream(bot, asked)) as steps:
                while reply is None:
                    async with asyncio.timeout_at(deadline):
                        step = await anext(steps)
                    if isinstance(step, Answer):
                        reply = step.reply
                    else:
                        said += step
                        yield {self.chat: _view((*asked, Turn(bot.name, said)))}
            if not reply.text.strip():
                raise ValueError(f"{bot.name} found no words; please try again")
            conversation = conversation.answered(asked, bot.name, reply)
            yield {
                self.conversation: conversation,
                self.chat: _view(conversation.turns),
                self.message: self._composer(),
                self.why: _why(conversation, len(conversation.replies) - 1),
            }
        except SHOWN as error:
            yield {
                self.chat: _view(conversation.turns),
                self.message: self._composer(text),
                self.notice: _alert(friendly(error)),
            }

    def shown(self, conversation: Conversation) -> dict[Any, Any]:
        """What was said, and nothing that is on its way."""
        return {self.chat: _view(conversation.turns), self.message: self._composer()}

    def pick(self, who: str, conversation: Conversation) -> dict[Any, Any]:
        """Another bot is chosen: a new conversation."""
        try:
            return self._meet(conversation.anew(who))
        except SHOWN as error:
            return {self.who: self._dropdown(conversation), self.notice: _alert(friendly(error))}

    def add(self, path: str, name: str, conversation: Conversation) -> dict[Any, Any]:
        """A character file is uploaded: a new conversation with that character."""
        try:
            # Read once: other visitors who upload the same share the file, and Gradio removes it before long.
            met = self._meet(conversation.anew(UPLOADED, read_upload(Path(path), name)))
        except SHOWN as error:
            met = {self.notice: _alert(friendly(error))}
        return {**met, self.file: self.gr.UploadButton(value=None)}

    def forget(self, conversation: Conversation) -> dict[Any, Any]:
        """A new conversation with the same bot."""
        return {
            self.conversation: conversation.anew(),
            self.chat: [],
            self.message: self._composer(""),
            self.notice: "",
            self.why: NOTHING_YET,
        }

    def export(self, conversation: Conversation) -> str:
        """The conversation as JSON."""
        return ChatSession(self._bot(conversation), history=conversation.turns).to_json()

    def explain(self, conversation: Conversation, place: int) -> dict[Any, Any]:
        """A message or its reply is clicked, the one at that place: where the reply comes from."""
        number = place // 2
        known = 0 <= number < len(conversation.replies)
        return {
            self.panel: self.gr.Accordion(open=True),
            self.why: _why(conversation, number) if known else NOTHING_YET,
        }

    def _meet(self, conversation: Conversation) -> dict[Any, Any]:
        self._bot(conversation)
        controls = self.cast.controls(conversation.who, conversation.character)
        return {
            **self.forget(conversation),
            self.conversation: conversation,
            self.who: self._dropdown(conversation),
            self.heading: self._heading(conversation),
            self.matcher: self.gr.Radio(
                [*controls.matchers], value=controls.matcher, visible=bool(controls.matchers)
            ),
            self.temperature: self.gr.Slider(
                value=controls.temperature or 0, visible=controls.temperature is not None
            ),
            self.fixed: self.gr.HTML(visible=controls == Controls()),
        }

    def _bot(
        self, conversation: Conversation, matcher: str | None = None, temperature: float | None = None
    ) -> Chatbot:
        return self.cast.bot(
            conversation.who, conversation.character, matcher=matcher, temperature=temperature
        )

    def _dropdown(self, conversation: Conversation) -> Any:
        """Everybody who can be talked with, and who is."""
        choices = [(name, key) for key, name in self.cast.names().items()]
        if conversation.character is not None:
            choices.append((f"{conversation.character.name} ({UPLOADED})", UPLOADED))
        return self.gr.Dropdown(
            choices, value=conversation.who, label="Talk with", filterable=False, elem_id="dk-who"
        )

    def _heading(self, conversation: Conversation) -> str:
        bot = self._bot(conversation)
        name = self.cast.names().get(conversation.who, bot.name)
        about = getattr(getattr(bot, "character", None), "summary", "")
        line = f"<p>{escape(about)}</p>" if about else ""
        return f'<div class="dk-heading"><h1>{escape(name)}</h1>{line}</div>'

    def _composer(self, text: str | None = None, *, busy: bool = False) -> Any:
        """The line to write in, with a text or as it is; while a reply comes it has a button to stop it."""
        changes: dict[str, Any] = {"submit_btn": not busy, "stop_btn": busy}
        return self.gr.Textbox(**changes) if text is None else self.gr.Textbox(value=text, **changes)

    def _html(self, value: str, *, visible: bool = True, elem_id: str | None = None) -> Any:
        """HTML without Gradio's styles for long texts."""
        return self.gr.HTML(value, visible=visible, elem_id=elem_id, apply_default_css=False)


# Pieces of the page -----------------------------------------------------------------------------------------


def _view(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns for the chat window, which takes texts for HTML even if it is to render no Markdown."""
    return [
        {
            "role": "user" if turn.speaker == USER else "assistant",
            "content": escape(turn.text, quote=False),
        }
        for turn in turns
    ]


def _alert(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'


def _why(conversation: Conversation, number: int) -> str:
    asked, answer = conversation.turns[2 * number], conversation.turns[2 * number + 1]
    reply: Reply = conversation.replies[number]
    return why_html(reply, answer.speaker, asked.text)
