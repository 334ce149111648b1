"""A dataset card in Markdown: the content of manifests, their sources and the findings of their audit."""

from collections import Counter
from collections.abc import Iterable, Mapping

from spanbox.data.audit import AuditReport
from spanbox.errors import ConfigError

COUNTS = ("pairs", "images", "texts", "entities", "entities_with_box", "entities_without_box", "boxes", "proposals")
MOST_ROWS = 30  # of types, languages and sources


def dataset_card(title: str, report: AuditReport, licences: Mapping[str, str]) -> str:
    """The dataset card as Markdown.

    Args:
        report: of the audit of all manifests.
        licences: of each source; the empty source is that of pairs without one.

    Raises:
        ConfigError: a licence is that of a source which no pair has.
    """
    unknown = [source for source in licences if source not in report.total.sources]
    if unknown:
        sources = (source for source, _ in report.total.sources.most_common(MOST_ROWS))
        known = ", ".join(repr(source) if source else "none (--licence =TEXT)" for source in sources)
        raise ConfigError(f"--licence: no pair has the source {unknown[0]!r}; the sources are {known or 'none'}")
    columns = list(report.manifests.values())
    lines = [
        f"# {_plain(title)}",
        "",
        f"| | {' | '.join(map(_plain, report.names))} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name in COUNTS:
        counts = " | ".join(f"{getattr(column, name):,}" for column in columns)
        lines += [f"| {name.replace('_', ' ')} | {counts} |"]
    for heading, attribute in (("Types", "types"), ("Languages", "languages")):
        found: Counter[str] = getattr(report.total, attribute)
        lines += ["", f"## {heading}", "", "| | count | share |", "|---|---:|---:|"]
        for value, count in _rows(found):
            lines.append(f"| {_plain(value) or 'not given'} | {count:,} | {count / found.total():.1%} |")
    lines += ["", "## Sources and licences", "", "| source | pairs | licence |", "|---|---:|---|"]
    for source, count in _rows(report.total.sources, licences):
        lines.append(f"| {_plain(source) or 'not given'} | {count:,} | {_plain(licences.get(source, 'not given'))} |")
    lines += ["", "## Audit", ""]
    findings = [("problem", finding) for finding in report.problems] + [("note", finding) for finding in report.notes]
    lines += ["| finding | | places |", "|---|---|---:|"] if findings else ["No problems found."]
    lines += [f"| {_plain(finding.kind)} | {kind} | {finding.count:,} |" for kind, finding in findings]
    if not report.decoded:
        lines += ["", "Images were neither decoded nor compared by content."]
    return "\n".join(lines) + "\n"


def _rows(found: Counter[str], further: Iterable[str] = ()) -> list[tuple[str, int]]:
    """The most frequent values and some further ones with their counts, and the rest together."""
    rows = found.most_common(MOST_ROWS)
    listed = dict(rows)
    rows += [(value, found[value]) for value in further if value not in listed]
    rest = found.total() - sum(count for _, count in rows)
    return [*rows, (f"{len(found) - len(rows):,} others", rest)] if rest else rows


def _plain(text: str) -> str:
    """Text that cannot end a cell of a table or begin HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
