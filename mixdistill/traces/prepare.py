"""Preparing: sources -> traces -> steps, verdicts, tokens -> shards, over several processes, in a fixed order."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixdistill import __version__
from mixdistill.errors import UserError, unknown
from mixdistill.traces import record as records
from mixdistill.traces import segment, shard_writer
from mixdistill.traces.encode import encode_trace
from mixdistill.traces.ordered_pool import ordered_map
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shard_index import Quarantined, Summary, summarise
from mixdistill.traces.shards import Shards
from mixdistill.traces.sources import File, ReadAs, Row, find_files, read_file, stamp
from mixdistill.traces.spool import Result, Spool
from mixdistill.traces.templates import PLAIN, ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer, train_bpe
from mixdistill.traces.trace import Step, Trace

VOCAB_SIZE = 8192  # of the tokenizer that is trained when none is given: enough for mathematics in one language
MAX_TOKENS = 32768  # the longest reasoning traces that are taught; beyond it stand mostly loops
JOB_ROWS = 128  # rows sent to a worker at once: some milliseconds of work per message, and a few MB in flight

Progress = Callable[[str, int, int, int], None]  # phase, files finished, files, traces so far


@dataclass(frozen=True)
class Settings:
    """How a trace becomes tokens."""

    template: ChatTemplate = PLAIN
    segment: str | None = "auto"  # a rule of `segment.RULES` for traces of one step; None: all stay as they are
    grade: bool = True  # answers against references
    max_tokens: int = MAX_TOKENS  # longer ones, all tokens counted, are quarantined

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment not in segment.RULES:
            raise unknown("segmentation rule", self.segment, segment.RULES)
        if self.max_tokens < 1:
            raise UserError(f"--max-tokens {self.max_tokens} must be at least 1")


def prepare(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = VOCAB_SIZE,
    read_as: ReadAs = ReadAs(),
    settings: Settings = Settings(),
    workers: int = 1,
    overwrite: bool = False,
    strict: bool = False,
    progress: Progress = lambda *_: None,
) -> Shards:
    """Reads all `sources` and writes shards to `out`, equal bytes for any number of `workers`. Without `tokenizer` a
    BPE of `vocab_size` is trained on the traces first. After an interruption the same call goes on where it was. Raises
    `UserError` for bad input, and under `strict` for the first row that is bad; then nothing is written."""
    out, files = Path(out), find_files(sources)
    shard_writer.check_out(out, overwrite)
    if workers < 1:
        raise UserError(f"--workers {workers} must be at least 1")
    made = tokenizer.hash if tokenizer else vocab_size
    with Spool(out, _key(files, read_as, settings, made)) as spool:
        tokenizer = tokenizer or spool.tokenizer()
        if tokenizer is None:
            tokenizer = train_bpe(_texts(_watched(files, read_as, progress, "tokenizer")), vocab_size)
            spool.keep_tokenizer(tokenizer)
        rows = _watched(files, read_as, progress, "traces")
        return _write(rows, out, tokenizer, settings, workers=workers, overwrite=overwrite, strict=strict, spool=spool)


def prepare_traces(
    traces: Iterable[Trace],
    out: Path | str,
    *,
    tokenizer: Tokenizer,
    settings: Settings = Settings(segment=None, grade=False),
    overwrite: bool = False,
) -> Shards:
    """`prepare` for traces that are in memory, in this process; their steps and verdicts are taken as they are."""
    rows = (Row(trace, "", number) for number, trace in enumerate(traces, start=1))
    return _write(rows, Path(out), tokenizer, settings, workers=1, overwrite=overwrite)


def read_texts(
    sources: Sequence[Path | str], *, read_as: ReadAs = ReadAs(), progress: Progress = lambda *_: None
) -> Iterator[str]:
    """Prompt and completion of every trace in `sources`: what a tokenizer is trained on."""
    return _texts(_watched(find_files(sources), read_as, progress, "tokenizer"))


def _texts(rows: Iterable[Row | Quarantined]) -> Iterator[str]:
    for row in rows:
        if isinstance(row, Row):
            yield row.trace.prompt
            yield row.trace.text


def _watched(files: Sequence[File], read_as: ReadAs, progress: Progress, phase: str) -> Iterator[Row | Quarantined]:
    """All rows of all files; tells `progress` after each job's worth and each file."""
    count = 0
    for done, file in enumerate(files):
        for row in read_file(file, read_as):
            count += isinstance(row, Row)
            if count % JOB_ROWS == 0:
                progress(phase, done, len(files), count)
            yield row
    progress(phase, len(files), len(files), count)


def _write(
    rows: Iterable[Row | Quarantined],
    out: Path,
    tokenizer: Tokenizer,
    settings: Settings,
    *,
    workers: int,
    overwrite: bool,
    strict: bool = False,
    spool: Spool | None = None,
) -> Shards:
    with shard_writer.ShardWriter(out, tokenizer=tokenizer, overwrite=overwrite) as writer:
        writer.extra = {
            "template": settings.template._asdict(),
            "segment": settings.segment,
            "max_tokens": settings.max_tokens,
        }
        jobs, encode = itertools.batched(rows, JOB_ROWS), Encode(tokenizer, settings)
        for result in itertools.chain.from_iterable(_results(jobs, encode, workers, spool)):
            if isinstance(result, Quarantined):
                if strict:
                    raise UserError(_refusal(result))
                writer.quarantine(result)
            else:
                writer.add_record(*result)
    return Shards.open(out)


def _results(jobs: Iterator[tuple], encode: "Encode", workers: int, spool: Spool | None) -> Iterator[list[Result]]:
    """The results of all jobs in order: those that are done already, then the others."""
    if spool is None:
        yield from ordered_map(encode, jobs, workers=workers)
        return
    for results in spool.done():
        if next(jobs, None) is not None:
            yield results
    for results in ordered_map(encode, jobs, workers=workers):
        spool.add(results)
        yield results


def _refusal(row: Quarantined) -> str:
    return (
        f"{row.file}:{row.line} is bad: {row.reason} {row.excerpt!r:.120}. Mend or remove it; or leave such rows out, "
        "with file, line and reason in quarantine.jsonl: --policy quarantine"
    )


def _key(files: Sequence[File], read_as: ReadAs, settings: Settings, tokenizer: str | int) -> dict[str, Any]:
    """All that the result depends on: other sources, or changed ones, begin anew."""
    return {
        "files": [[file.name, file.chosen, *stamp(file.path)] for file in files],
        "read_as": repr(read_as),
        "settings": repr(settings),
        "tokenizer": tokenizer,
        "version": [__version__, JOB_ROWS],
    }


@dataclass(frozen=True)
class Encode:
    """The work of one process on one job: grade, segment, tokenize; rows that are no good come back with the reason."""

    tokenizer: Tokenizer
    settings: Settings

    def __call__(self, rows: Sequence[Row | Quarantined]) -> list[tuple[bytes, Summary] | Quarantined]:
        """One result for each row, in order."""
        traces = [row.trace for row in rows if isinstance(row, Row)]
        if self.settings.grade:
            from mixdistill.traces import grade
        graded = iter(grade.grade_traces(traces) if self.settings.grade else traces)
        return [self._encode(row._replace(trace=next(graded))) if isinstance(row, Row) else row for row in rows]

    def _encode(self, row: Row) -> tuple[bytes, Summary] | Quarantined:
        trace = row.trace
        excerpt = trace.text[:80]

        def bad(reason: str) -> Quarantined:
            return Quarantined(row.file, row.line, reason, trace.teacher, excerpt)

        for name, text in (("prompt", trace.prompt), ("completion", trace.text)):
            if not text.strip():
                return bad(f"empty {name}")
        try:
            encoded = self._segmented(trace)
            record = records.to_bytes(encoded)
        except (UserError, UnicodeEncodeError):
            return bad("broken Unicode (a lone surrogate)")
        if len(encoded.tokens) > self.settings.max_tokens:
            return bad(f"longer than {self.settings.max_tokens} tokens")
        if self.tokenizer.unk_id is not None and self.tokenizer.unk_id in encoded.tokens:
            return bad("words unknown to the tokenizer")
        return record, summarise(encoded)

    def _segmented(self, trace: Trace) -> EncodedTrace:
        rule, template = self.settings.segment, self.settings.template
        if rule is None:
            return encode_trace(self.tokenizer, trace, template)
        encoded = encode_trace(self.tokenizer, segment.segment_trace(trace, rule), template)
        if encoded.logprobs is None or len(encoded.trace.steps) > 1:
            return encoded
        # Log-probabilities without their tokens' texts cannot be divided, so the trace came back whole; but they are of
        # this tokenizer, so they lie where they lie, however the text is divided.
        bare = dataclasses.replace(trace, steps=(Step(trace.text),))
        divided = encode_trace(self.tokenizer, segment.segment_trace(bare, rule), template)
        return divided._replace(logprobs=encoded.logprobs)
