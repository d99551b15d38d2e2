"""Run variants of one model and measure them: speed and memory (``bench``), quality of texts (``eval``).

A *variant* is one way to run a model (``variants``). A ``job`` tells a ``worker`` process how to load it; the
process runs requests and measures them (``runner``). ``benchmark`` and ``evaluation`` plan the requests of
the two commands and return *results*, a JSON object. Reports (``bench_report``, ``eval_report``) and
pictures (``plots``) are functions of the results.
"""
