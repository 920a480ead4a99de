"""`python -m bespeak_cli`, for an environment whose scripts are not on the path."""

from bespeak_cli import cli

if __name__ == "__main__":
    cli(prog_name="bespeak")
