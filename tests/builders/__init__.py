"""Models, samples and checks that several tests share; no test imports a test."""
