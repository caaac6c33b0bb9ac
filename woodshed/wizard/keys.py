"""The face for real terminals: arrow keys, typing to filter, completed paths; a question gives way to its answer."""

from collections.abc import Sequence

from prompt_toolkit.application import Application
from prompt_toolkit.application.current import get_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import PathCompleter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, VSplit, Window
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style as Sheet

from woodshed.console import Terminal
from woodshed.keyboard import forget_keys
from woodshed.wizard.dialog import matching
from woodshed.wizard.face import Ask, Choice, EndOfInputError, Glyphs, Line, pick_glyphs
from woodshed.wizard.layout import INDENT, answer_line, question
from woodshed.wizard.lines import show_lines

SHEET = Sheet.from_dict({"title": "bold", "dim": "ansibrightblack", "accent": "ansicyan bold", "note": "ansiyellow"})
MOST_ROWS, FEWEST_ROWS = 12, 3  # choices at a time
COMMANDS = ("b", "q", "?")


class KeysFace:
    """Asks with prompt_toolkit.

    Args:
        terminal: prints what stays.
        source, sink: where keys come from and the screen is drawn; the process's own when None.
    """

    def __init__(self, terminal: Terminal, *, source: Input | None = None, sink: Output | None = None) -> None:
        self._terminal = terminal
        self._source, self._sink = source, sink
        self.glyphs: Glyphs = pick_glyphs(terminal.out.encoding)

    @property
    def width(self) -> int:
        """Columns there are for text."""
        return self._terminal.out.width

    def ask(self, ask: Ask) -> str:
        """Draw a question, serve the keys, and take the question away again."""
        out = self._terminal.out
        is_coloured = out.color_system is not None and not out.no_color
        return _Screen(ask, self.glyphs, is_coloured=is_coloured).run(self._source, self._sink)

    def show(self, lines: Sequence[Line]) -> None:
        """Print lines."""
        show_lines(self._terminal, lines)

    def forget_keys(self) -> None:
        """Drop what was typed: what the terminal holds, and what was read behind the Enter of the last answer."""
        clear_typeahead(self._source or get_app_session().input)
        forget_keys()

    def note_answer(self, title: str, value: str, *, is_kept: bool) -> None:
        """Print one quiet line that says what was answered."""
        self.show([answer_line(title, value, is_kept=is_kept)])


class _Screen:
    """One question while it is being answered."""

    def __init__(self, ask: Ask, glyphs: Glyphs, *, is_coloured: bool) -> None:
        self._ask, self._glyphs, self._is_coloured = ask, glyphs, is_coloured
        self._numbers = {choice.word: number for number, choice in enumerate(ask.choices, start=1)}
        self._selected = self._default_index()
        self._buffer = Buffer(
            multiline=False,
            completer=PathCompleter(expanduser=True) if ask.is_path else None,
            on_text_changed=lambda _: self._select_first(),
        )

    def _default_index(self) -> int:
        words = [choice.word for choice in self._ask.choices]
        return words.index(self._ask.default) if self._ask.default in words else 0

    def _select_first(self) -> None:
        self._selected = 0 if self._typed else self._default_index()

    @property
    def _typed(self) -> str:
        return self._buffer.text.strip()

    def _is_command(self, typed: str) -> bool:
        return typed.lower() in COMMANDS or (self._ask.can_skip and typed.lower() == "r")

    def _visible(self) -> list[Choice]:
        """Return the choices that what was typed leaves over."""
        typed = self._typed
        if not typed or self._is_command(typed):
            return list(self._ask.choices)
        exact = [choice for choice in self._ask.choices if str(self._numbers[choice.word]) == typed]
        return exact or matching(self._ask.choices, typed)

    def run(self, source: Input | None, sink: Output | None) -> str:
        above = FormattedTextControl(self._above, focusable=False)
        field = BufferControl(self._buffer)
        prompt = f"{INDENT}{self._glyphs.mark} "
        entry = VSplit([Window(FormattedTextControl(prompt), width=len(prompt)), Window(field, height=1)])
        app: Application[str] = Application(
            Layout(HSplit([Window(above, dont_extend_height=True), entry]), focused_element=field),
            key_bindings=self._bindings(),
            style=SHEET,
            color_depth=None if self._is_coloured else ColorDepth.DEPTH_1_BIT,
            erase_when_done=True,
            input=source,
            output=sink,
        )
        app.ttimeoutlen = 0.05  # Escape alone means back
        return app.run()

    def _above(self) -> StyleAndTextTuples:
        """Return everything above the line being typed, laid out for the terminal as it is now."""
        from prompt_toolkit.application import get_app

        size = get_app().output.get_size()
        visible = self._visible()
        self._selected = max(min(self._selected, len(visible) - 1), 0)
        selected = self._numbers[visible[self._selected].word] if visible else 0
        most = MOST_ROWS
        while True:  # notes may take rows of their own, so how many choices fit is seen when they are laid out
            first = max(min(self._selected - most // 2, len(visible) - most), 0)
            shown = [(self._numbers[choice.word], choice) for choice in visible[first : first + most]]
            lines = question(self._ask, size.columns - 1, self._glyphs, shown=shown, selected=selected)
            if len(lines) + 2 <= size.rows or most <= FEWEST_ROWS:
                break
            most -= 1
        pieces: StyleAndTextTuples = [("", "\n")]
        for row in lines:
            pieces += [(f"class:{style}" if style else "", text) for style, text in row]
            pieces.append(("", "\n"))
        pieces.pop()
        return pieces

    def _answer(self) -> str:
        """Return what Enter means now."""
        typed = self._typed
        if not typed:
            chosen = self._ask.choices[self._selected].word if self._ask.choices else ""
            return "" if chosen == self._ask.default else chosen
        if self._is_command(typed) or not self._ask.choices:
            return typed
        visible = self._visible()
        is_word = any(typed.casefold() == choice.word.casefold() for choice in self._ask.choices)
        return typed if is_word or not visible else visible[self._selected].word

    def _bindings(self) -> KeyBindings:
        """Return the keys that end the question, and those that move in it."""
        bindings = KeyBindings()
        self._bind_moves(bindings)

        @bindings.add("enter")
        def _accept(event: KeyPressEvent) -> None:
            event.app.exit(result=self._answer())

        @bindings.add("escape", eager=True)
        def _back(event: KeyPressEvent) -> None:
            event.app.exit(result="b")

        @bindings.add("?")
        def _help(event: KeyPressEvent) -> None:
            if self._buffer.text:
                self._buffer.insert_text("?")
            else:
                event.app.exit(result="?")

        @bindings.add("c-c")
        def _interrupt(event: KeyPressEvent) -> None:
            event.app.exit(exception=KeyboardInterrupt())

        @bindings.add("c-d")
        def _end(event: KeyPressEvent) -> None:
            event.app.exit(exception=EndOfInputError(self._ask.title))

        return bindings

    def _bind_moves(self, bindings: KeyBindings) -> None:
        @bindings.add("up")
        def _up(_: KeyPressEvent) -> None:
            self._selected = (self._selected - 1) % max(len(self._visible()), 1)

        @bindings.add("down")
        def _down(_: KeyPressEvent) -> None:
            self._selected = (self._selected + 1) % max(len(self._visible()), 1)

        @bindings.add("tab")
        def _complete(_: KeyPressEvent) -> None:
            if self._buffer.complete_state:
                self._buffer.complete_next()
            else:
                self._buffer.start_completion(insert_common_part=True)
