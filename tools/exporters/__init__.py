"""Files of real exporters: whether each is accepted, with the logits, gradient and attack of ONNX Runtime.

`python -m tools.exporters` (`make exporters`) makes environments for exporters in build/exporters, has them
export networks with random weights one by one, checks every file, and writes the record in
benchmarks/results/exporters.json, the table in docs/models.md, and small files for `make test` in
api_tests/models/exported.
"""
