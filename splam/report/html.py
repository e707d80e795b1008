"""Executed notebooks as pages that open without a network: nbconvert's lab template, formulas as MathML."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def notebooks_to_html(executed: Path, out: Path) -> list[Path]:
    """Write each notebook of a folder as out/STEM.html, and out/index.html that lists them; returns the pages."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return convert(body, display="block")

        def inline_math(self, body: str) -> str:
            return convert(body)

    def markdown2html(source: str) -> str:
        return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)

    lab = (FOLDER / "notebook.html.j2").read_text()
    exporter = HTMLExporter(raw_template=lab, filters={"markdown2html": markdown2html})
    out.mkdir(parents=True, exist_ok=True)
    pages = {out / f"{path.stem}.html": path for path in sorted(executed.glob("*.ipynb"))}
    for page, path in pages.items():
        page.write_text(exporter.from_filename(str(path))[0])
    (out / "index.html").write_text(TEMPLATES.get_template("notebooks.html.j2").render(pages=pages))
    return list(pages)
