"""cirlib: composed image retrieval (CIR) — benchmarks, encoders, composers, losses, mining and metrics.

Importing the package is light; torch is loaded by the modules that need it.
"""

__version__ = "0.1.0"
