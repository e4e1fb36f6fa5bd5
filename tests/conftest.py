import os
import signal

import hypothesis

pytest_plugins = ["tests.support.postgres"]

# CI tries the same examples every time, so that a red run is about the change; elsewhere new ones are tried.
hypothesis.settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

# Most workers of the tests run no validation.
os.environ.setdefault("LORA_REG_PRELOAD", "false")

# A shell that starts this in the background without job control has SIGINT ignored, in all that is started here too.
signal.signal(signal.SIGINT, signal.default_int_handler)
