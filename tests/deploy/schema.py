"""Checks files against the schema of proxy.toml.

Usage: python schema.py SCHEMA FILE...

Each FILE has to be valid, and has to be refused once an unknown key stands in any one of its tables.
"""

import copy
import json
import pathlib
import sys
import tomllib

import jsonschema


def main() -> None:
    schema = json.loads(pathlib.Path(sys.argv[1]).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    planted = 0
    for path in map(pathlib.Path, sys.argv[2:]):
        document = tomllib.loads(path.read_text())
        for error in validator.iter_errors(document):
            sys.exit(f"{path}: {'.'.join(map(str, error.path))}: {error.message}")
        for place in tables(document):
            spoilt = copy.deepcopy(document)
            table = spoilt
            for step in place:
                table = table[step]
            table["no_such_key"] = {"nor": "this"}
            if validator.is_valid(spoilt):
                sys.exit(f"{path}: an unknown key in [{'.'.join(map(str, place))}] is not noticed")
            planted += 1
    print(f"{len(sys.argv) - 2} files valid, {planted} unknown keys refused")


def tables(value: object, place: tuple = ()):
    """Where tables are, the document itself included."""
    if isinstance(value, dict):
        yield place
        for key, inner in value.items():
            yield from tables(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from tables(inner, (*place, index))


main()
