"""The papers, one place each; a method is imported when it is asked for."""

METHODS = {
    "tas": "tas_fast.methods.tas",
}
