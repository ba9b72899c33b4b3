"""A diagnosis as a page: what was tried, as bars. One file that needs no other and no network."""

from __future__ import annotations

from importlib import resources

from markupsafe import Markup, escape

from eval.diagnosis.report import Diagnosis, text

SHOWN = 30  # rows; the others are folded away

_STYLE = """
main > p { margin-top: 0.8rem; }
.bars td, .bars th { white-space: nowrap; } .bars tbody th { white-space: normal; }
.bars td.track { width: 45%; min-width: 5rem; vertical-align: middle; }
.track > div { height: 0.9rem; background: var(--line); border-radius: 0.3rem; }
.fill { height: 100%; border-radius: 0.3rem; background: var(--muted); }
.better .fill { background: var(--good); } .as-is .fill { background: var(--first); }
.track > div, .fill { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
details { margin-top: 1rem; } summary { cursor: pointer; } details .scroll { margin-top: 1rem; }
@media print { pre { white-space: pre-wrap; } }
@media (max-width: 30rem) {
  .bars tbody th { min-width: 0; }
  .bars th, .bars td { padding-inline: 0.4rem; }
  .bars td.track { width: 25%; min-width: 3rem; }
}
"""
_PAGE = Markup("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Diagnosis of {subject}: {outcome}</title><style>{css}{style}</style></head>
<body><main><h1>Diagnosis of {subject}</h1>
<p><strong>{outcome}</strong>. {advice}</p>
<section><h2>What was tried</h2>
<p>How many images of the sample are correct. Green: better than the configured setup, beyond
chance. Changes that look less promising are tried on fewer images.</p>
{table}{others}</section>
<section><h2>In words</h2><pre class="scroll" tabindex="0">{text}</pre></section>
</main></body></html>
""")
_TABLE = Markup("""<div class="scroll"><table class="bars"><thead><tr><th scope="col">change</th>
<th scope="col" class="n">correct</th><th scope="col" class="n">top-1</th><th scope="col"></th></tr>
</thead><tbody>
{rows}</tbody></table></div>
""")
_OTHERS = Markup("<details><summary>{number} less promising ones</summary>{table}</details>\n")
_ROW = Markup(
    '<tr class="{kind}"><th scope="row">{name}</th><td class="n">{correct} of {images}</td>'
    '<td class="n">{percent} %</td><td class="track"><div><div class="fill" '
    'style="width: {percent}%"></div></div></td></tr>\n'
)


def html_page(diagnosis: Diagnosis) -> str:
    """The whole page; text from outside is escaped."""
    findings = diagnosis.findings
    rows = [_row("as configured", diagnosis.as_is_correct, findings.images, "as-is")]
    tried = (trial for trial in findings.trials if trial.images)
    rows += [
        _row(each.name, each.correct, each.images, "better" if each.is_better else "other")
        for each in tried
    ]
    table, others = (
        _TABLE.format(rows=Markup("").join(part)) for part in (rows[:SHOWN], rows[SHOWN:])
    )
    css = resources.files("eval").joinpath("resources/report.css").read_text(encoding="utf-8")
    return _PAGE.format(
        subject=diagnosis.subject,
        outcome=diagnosis.outcome.upper(),
        advice=diagnosis.advice,
        css=Markup(css),  # noqa: S704 - our own file
        style=Markup(_STYLE),  # noqa: S704 - also our own
        table=table,
        others=_OTHERS.format(number=len(rows) - SHOWN, table=others) if rows[SHOWN:] else "",
        text=escape(text(diagnosis)),
    )


def _row(name: str, correct: int, images: int, kind: str) -> Markup:
    percent = f"{100 * correct / images:.1f}"
    return _ROW.format(kind=kind, name=name, correct=correct, images=images, percent=percent)
