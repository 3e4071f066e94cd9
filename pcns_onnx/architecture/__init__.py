"""A smaller net designed from a trained one by a single PCA pass: widths, depth, and a net to train anew.

    spectra (what layers use) → depth (which stay) → chain (what that costs, and the net) → blueprint (what is said)

The low-effort design of Garg, Panda and Roy; `api.training.design` tells the story.
"""
