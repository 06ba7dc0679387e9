"""The real scheduler in virtual time: SGLang decides, a cost model says how long it takes."""
