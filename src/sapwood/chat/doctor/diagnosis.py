"""What a person should know about a template, a tokenizer and their data before anything is trained.

In: a `Chat`, and what the pass over the rows has found (`survey`). Out: `Finding`s: a sentence each, how grave it is,
and the next step. Nothing is changed and nothing printed; the probes are small conversations of our own, rendered and
compared, so that a template is judged by what it does and not by what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sapwood.chat.chat import Chat
from sapwood.chat.doctor.findings import Finding, date_findings, stop_findings, tokenizer_findings
from sapwood.chat.doctor.row_checks import ROW_KINDS, agreeing
from sapwood.chat.doctor.survey import Survey
from sapwood.chat.probes import ASK, TELL, TOOL
from sapwood.chat.properties import faults
from sapwood.chat.roundtrip import compare
from sapwood.chat.turns import TAGS
from sapwood.errors import SapwoodError, TemplateError
from sapwood.records import Conversation, Message, ToolCall

_MORE = Message("user", "And heartwood?")
_CALL = Message("assistant", tool_calls=(ToolCall("find_tree", {"kind": "oak"}, "a1b2c3d4e"),))
_RESULT = Message("tool", '{"found": 3}', tool_call_id="a1b2c3d4e", name="find_tree")
PROBE = Conversation((Message("system", "Be brief."), ASK, _CALL, _RESULT, TELL), (TOOL,))
"""One of everything: system message, tools, a question, a call, its result, an answer."""


def examine(chat: Chat) -> list[Finding]:
    """All findings about the template and the tokenizer, by what was looked at."""
    found = [Finding(fault.severity, fault.sentence, fault.next_step, fault.kind) for fault in faults(chat)]
    kinds = {finding.kind for finding in found}
    if "unusable" in kinds:
        return [*found, *stop_findings(chat), *tokenizer_findings(chat)]
    if not kinds & {"system-refused", "system-dropped"}:
        found.append(Finding("ok", "System messages reach the prompt.", kind="system"))
    return [*found, *_texts(kinds), *_tools(chat), *_prompt(chat), *_turns(chat), *stop_findings(chat), *tokenizer_findings(chat)]


def _texts(faults_found: set[str]) -> Iterator[Finding]:
    if not faults_found & {"text-changed", "text-trimmed", "message-dropped"}:
        yield Finding("ok", "Texts reach the prompt letter for letter, white space included.", kind="text")


def _tools(chat: Chat) -> Iterator[Finding]:
    thought = "It asks for a tree." if _opened(chat) else None
    call = Message("assistant", tool_calls=_CALL.tool_calls, reasoning=thought)
    try:
        chat.prompt([ASK], [TOOL], where="a probe")
    except TemplateError:
        step = "For data with tools write them into the system message (`--tools-in-system`), or choose a template with a tools branch."
        yield Finding("note", "The template has no place for tools.", step, kind="tools")
        return
    yield Finding("ok", "Tools reach the prompt.", kind="tools")
    try:
        turn = chat.turns(Conversation((ASK, call), (TOOL,)))[0]
    except SapwoodError as error:
        yield Finding("note", f"Tool calls cannot be trained: {_reason(error)}", kind="calls")
        return
    style = chat.form.style
    if style is None:
        yield Finding("note", chat.form.note or f"Calls written as {_short(turn.text)} cannot be read back.", kind="calls")
    else:
        yield Finding("ok", f"Tool calls are written as {_short(turn.text)}, and read back (style: {style.name}).", kind="calls")
        losses = [
            sentence
            for kind, sentence in compare(call, chat.parse(turn.ids, turn.prompt).message)
            if not kind.startswith("call ids")  # most templates write none, and servers make their own
        ]
        if losses:
            what = "; ".join(losses)
            yield Finding("note", f"A call comes back changed: {what}.", "Nothing that is trained changes.", "read-back")
    try:
        chat.prompt([ASK, call, _RESULT], [TOOL], where="a probe")
    except TemplateError as error:
        yield Finding("note", f"Tool results do not reach the prompt: {_reason(error)}", kind="tool-results")
    else:
        yield Finding("ok", "Tool results reach the prompt.", kind="tool-results")


def _prompt(chat: Chat) -> Iterator[Finding]:
    """The generation prompt, text of the template's own, a date, an opened thought."""
    try:
        prompt = chat.prompt([ASK], where="a probe").text
        bare = chat.render(Conversation((ASK,)))
    except TemplateError as error:
        yield Finding(
            "problem", f"A plain question cannot be rendered: {_reason(error)}", "Choose another template with --template FILE.", "prompt"
        )
        return
    lead = prompt.partition(ASK.content)[0]
    for control in chat.tokens.control_ids:
        lead = lead.replace(control, " ")
    if len(lead.split()) > 3:
        words = " ".join(lead.split())
        sentence = f"The template puts text of its own before a question without a system message: {words!r}."
        yield Finding("note", sentence, "Rows with a system message of their own replace it, in most templates.", kind="own-text")
    if prompt == bare:
        yield _no_generation_prompt(chat)
    else:
        added = prompt[len(bare) :] if prompt.startswith(bare) else prompt[-40:]
        yield Finding("ok", f"The generation prompt is {added!r}.", kind="generation-prompt")
    yield from date_findings(prompt)
    opened = _opened(chat)
    if opened:
        sentence = f"The prompt opens a thought ({opened}): each trained turn needs reasoning."
        yield Finding("note", sentence, "Give turns `reasoning`.", kind="prefill")


def _no_generation_prompt(chat: Chat) -> Finding:
    """Fine where the answer stands right behind the question; else the model has to write its own header."""
    try:
        text = chat.turns(Conversation((ASK, TELL)))[0].text
    except SapwoodError:
        text = ""
    if text.lstrip().startswith(TELL.content):
        return Finding("ok", "The answer stands right behind the question, without a generation prompt.", kind="generation-prompt")
    sentence = (
        f"The template adds no generation prompt; the model has to begin its turns by itself, with {text.partition(TELL.content)[0]!r}."
    )
    return Finding("note", sentence, kind="generation-prompt")


def _opened(chat: Chat) -> str | None:
    """The tag of a thought that the prompt leaves open."""
    try:
        prompt = chat.prompt([ASK], where="a probe").text
    except TemplateError:
        return None
    return next((tag for tag in TAGS if prompt.rstrip().endswith(tag)), None)


def _turns(chat: Chat) -> Iterator[Finding]:
    """History, reasoning, inserted thoughts."""
    if chat.turn_end is None:
        return  # nothing can be trained; the fault is told elsewhere
    thought = "It is the young wood." if _opened(chat) else None
    first = Message("assistant", TELL.content, reasoning=thought)
    try:
        turns = chat.turns(Conversation((ASK, first, _MORE, first)))
    except SapwoodError as error:
        yield Finding("problem", f"A plain conversation cannot be trained: {_reason(error)}", kind="history")
        return
    if turns[1].prompt.text.startswith(turns[0].prompt.text + turns[0].text):
        yield Finding("ok", "History is kept as it was written, so the rows of a conversation share their beginnings.", kind="history")
    else:
        sentence = "The template rewrites history (it drops old reasoning, say): rows branch, which is correct but shares less."
        yield Finding("note", sentence, kind="history")
    if turns[0].added_arguments:
        sentence = f"Answers without reasoning need {dict(turns[0].added_arguments)}; rows and evaluation use it where needed."
        yield Finding("note", sentence, kind="inserted-thought")
    thinking = Message("assistant", TELL.content, reasoning="It is the young wood.")
    try:
        turns = chat.turns(Conversation((ASK, thinking, _MORE, thinking)))
    except SapwoodError as error:
        yield Finding("note", f"Reasoning cannot be trained: {_reason(error)}", kind="reasoning")
        return
    kept = "It is the young wood." in turns[1].prompt.text
    words = "and kept in the history" if kept else "and left out of the history, as the model will see it"
    yield Finding("ok", f"Reasoning is trained {words}: {_short(turns[0].text)}.", kind="reasoning")


def survey_findings(survey: Survey) -> list[Finding]:
    """What the pass over all rows has found, the counts first."""
    found: list[Finding] = []
    tokens, lengths = survey.tokens, survey.lengths
    if lengths is not None:
        share = tokens.trained / tokens.row_tokens
        sentence = (
            f"{survey.taken:,} of {survey.rows_in:,} conversations can be trained: {tokens.rows:,} row{'s' * (tokens.rows != 1)} of "
            f"{tokens.row_tokens:,} tokens, the longest {lengths.longest:,} ({lengths.longest_at}); "
            f"{tokens.trained:,} ({share:.0%}) are trained."
        )
        found.append(Finding("ok", sentence, kind="rows"))
    for kind, count in survey.kinds.items():
        what = ROW_KINDS[kind]
        sentence = f"{count.rows:,} {agreeing(what.title, count.rows)}; the first: {count.first[0].where}, {count.first[0].sentence}"
        found.append(Finding(what.severity, sentence, what.next_step, kind))
    if survey.most_common_answer is not None:
        text, share = survey.most_common_answer
        sentence = f"{share:.0%} of the conversations end in one answer, {text!r}: a model that always says it is right that often."
        found.append(Finding("note" if share >= 0.5 else "ok", sentence, kind="common-answer"))
    if survey.taken and survey.prompts == 1:
        sentence = (
            f"{'All rows ask' if survey.taken > 1 else 'The one row asks'} the same, so none can be held out to judge a tuned model by."
        )
        found.append(Finding("note", sentence, "Add other conversations, or train unjudged, with --held-out 0.", "one-prompt"))
    return found


_CONCERNS = {
    "tools": ("tools", "none of these rows has any"),
    "calls": ("tools", "none of these rows has any"),
    "tool-results": ("tools", "none of these rows has any"),
    "read-back": ("tools", "none of these rows has any"),
    "reasoning": ("reasoning", "none of these rows has any"),
    "system-refused": ("system", "none of these rows has any"),
    "own-text": ("no system", "each of these rows has one"),
    "history": ("turns", "each of these rows trains one turn"),
    "prefill": ("", "all of these rows do have it"),
    "text-trimmed": ("spaces", "none of these rows has any to lose"),
}
"""Notes that concern rows of one make alone: the feature that these have, and what is said where no row has it."""


def in_light_of(findings: Sequence[Finding], survey: Survey) -> list[Finding]:
    """Findings about a template as they concern these rows: a note about what no row makes use of is none."""
    found = []
    for finding in findings:
        feature, words = _CONCERNS.get(finding.kind, ("", ""))
        if finding.severity == "note" and words and feature not in survey.features:
            finding = Finding("ok", f"{finding.sentence.rstrip('.')} ({words}).", kind=finding.kind)
        found.append(finding)
    return found


Verdict = Literal["healthy", "usable", "not trainable"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The doctor's last word. `exit_code` is 1 where training would be refused or wrong."""

    verdict: Verdict
    sentence: str
    notes: int
    problems: int

    @property
    def exit_code(self) -> int:
        """0: go on; 1: mend first."""
        return int(self.verdict == "not trainable")


def diagnose(findings: Sequence[Finding], survey: Survey | None, max_refused: float = 0.02) -> Diagnosis:
    """Healthy, usable with notes, or not trainable: the answer that `sapwood sft` would give before it loads the model.

    Rows that cannot be trained are a note as long as their share is at most `max_refused`, as for a run.
    """
    refused = survey.refused if survey is not None else 0
    grave = [f for f in findings if f.severity == "problem" and f.kind != "refused"]
    notes = sum(f.severity == "note" for f in findings)
    reasons = [f"{len(grave)} problem{'s' * (len(grave) != 1)} with the template"] if grave else []
    if survey is not None and refused and (refused > max_refused * survey.rows_in or refused == survey.rows_in):
        reasons.append(f"{refused:,} of {survey.rows_in:,} rows cannot be trained (at most {max_refused:.0%} may be left out)")
    if reasons:
        return Diagnosis("not trainable", f"Not trainable as it is: {' and '.join(reasons)}.", notes, len(grave) + bool(refused))
    if refused:
        notes += 1
    if notes:
        left_out = f"; {refused:,} row{'s' * (refused != 1)} would be left out" if refused else ""
        return Diagnosis("usable", f"Usable, with {notes} note{'s' * (notes != 1)}{left_out}.", notes, int(bool(refused)))
    return Diagnosis("healthy", "Healthy.", 0, 0)


def _reason(error: SapwoodError) -> str:
    return str(error).removeprefix("a probe: ").removeprefix("a conversation made in code, ")


def _short(text: str, limit: int = 90) -> str:
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit // 2] + " … " + shown[-limit // 3 :]
