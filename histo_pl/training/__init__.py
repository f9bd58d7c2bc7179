"""Training of a classifier: the LightningModule, optimizers, callbacks, the linear probe, a run's folder."""
