"""A diagnosis as a page: what was tried, as bars. One file that needs no other and no network."""

from __future__ import annotations

from importlib import resources

from markupsafe import Markup, escape

from eval.diagnosis.report import Diagnosis, text
from eval.diagnosis.search import Trial

_STYLE = """
.bars td { white-space: nowrap; } .bars td.bar { width: 60%; min-width: 12rem; }
.track { position: relative; height: 1.1rem; background: var(--line); border-radius: 0.3rem; }
.fill { height: 100%; border-radius: 0.3rem; background: var(--muted); }
.better .fill { background: var(--good); } .as-is .fill { background: var(--first); }
pre { white-space: pre-wrap; }
"""
_PAGE = Markup("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Diagnosis of {subject}: {outcome}</title><style>{css}{style}</style></head>
<body><main><h1>Diagnosis of {subject}</h1>
<p><strong>{outcome}</strong>. {advice}</p>
<section><h2>What was tried</h2>
<p>Images of the sample that are right, in percent. Green: better than what is configured, beyond
chance. A change that does not look promising is tried on fewer images.</p>
<div class="scroll"><table class="bars"><thead><tr><th>change</th><th>right</th><th>of</th>
<th>top-1</th></tr></thead><tbody>
{rows}</tbody></table></div></section>
<section><h2>In words</h2><pre>{text}</pre></section>
</main></body></html>
""")
_ROW = Markup(
    '<tr class="{kind}"><th scope="row">{name}</th><td>{correct}</td><td>{images}</td>'
    '<td class="bar"><div class="track" title="{percent} %"><div class="fill" '
    'style="width: {percent}%"></div></div></td></tr>\n'
)


def html_page(diagnosis: Diagnosis) -> str:
    """The whole page; what comes from outside is escaped."""
    findings = diagnosis.findings
    rows = [_row("as configured", diagnosis.as_is_correct, findings.images, "as-is")]
    tried = (trial for trial in findings.trials if trial.images)
    rows += [_row(trial.name, trial.correct, trial.images, _kind(trial)) for trial in tried]
    css = resources.files("eval").joinpath("resources/report.css").read_text(encoding="utf-8")
    return _PAGE.format(
        subject=diagnosis.subject,
        outcome=diagnosis.outcome.upper(),
        advice=diagnosis.advice,
        css=Markup(css),  # noqa: S704 - our own file
        style=Markup(_STYLE),  # noqa: S704 - our own, too
        rows=Markup("").join(rows),
        text=escape(text(diagnosis)),
    )


def _kind(trial: Trial) -> str:
    return "better" if trial.is_better else "other"


def _row(name: str, correct: int, images: int, kind: str) -> Markup:
    percent = f"{100 * correct / images:.1f}"
    return _ROW.format(kind=kind, name=name, correct=correct, images=images, percent=percent)
