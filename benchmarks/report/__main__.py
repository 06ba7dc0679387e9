"""Makes docs/benchmarks.md, its plots and the README's table of gains from committed results.

python -m benchmarks.report [--no-plots]
"""

import argparse

from benchmarks.report import document


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--no-plots", action="store_true", help="keep the plots there are")
    if not parser.parse_args().no_plots:
        from benchmarks.report import plots

        for file in plots.draw_all(document.PLOTS):
            print(file.relative_to(document.REPOSITORY))
    document.DOCUMENT.write_text(document.text())
    print(document.DOCUMENT.relative_to(document.REPOSITORY))
    document.README.write_text(document.readme(document.README.read_text()))


if __name__ == "__main__":
    main()
