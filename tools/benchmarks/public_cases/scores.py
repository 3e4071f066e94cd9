"""Scores of the cases that need another setting than the ready-made ones; `--metric` names them from here."""

from __future__ import annotations

from pcns_onnx.metrics import Mask

text_map = Mask(threshold=0.3)
"""Where text is: 0.3 is the threshold that the detector's authors use."""
notes = Mask(threshold=0.3, output="StatefulPartitionedCall:1")
"""Which notes sound: 0.3 is Basic Pitch's threshold of frames."""
speech = Mask(threshold=0.5, output="output")
"""Whether somebody speaks."""
speech_over_time = Mask(threshold=0.5, output="speech_probs")
"""The same for all steps of a recording at once."""
faces = Mask(threshold=0.6, output="softmax", column=1)
"""Where faces may be: 0.6 is MTCNN's first threshold."""
