"""`python -m benchmarks`: all of them, one after the other."""

from __future__ import annotations

from benchmarks import attacks, certificates, library, service

library.main()
service.main()
certificates.main()
attacks.print_briefly()
