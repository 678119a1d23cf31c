"""How fast it is, and beside what: `make bench`.

Every figure comes with a ratio against something that ran in the same minute on the same machine,
because absolute figures of a shared machine mean little.
"""
