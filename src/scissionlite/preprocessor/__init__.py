"""Preprocessor: from a plan to a bundle (Inserter, Trainer and Splitter of arXiv 2105.02019).

All runs on the caller's thread. choosing.choose calls pipeline.prepare for one plan after another::

    prepare    opened_data checks folders, classes and headers; data -> samples (inputs, target)
    inserter   Graph -> SlicedNetwork; calibration finds the scales, importance those of a
               shallow encoder; kept_encoder brings one from another bundle;
               second_cut makes a third tier
    trainer    trains it by a Recipe: training_setup, then a loop over epochs and batches
                 samples -> Batch: batches, or once for all epochs: feature_cache
                 Batch -> loss: objectives, for a task; teacher answers for the uncut network
                 after an epoch: batch_norm, early_stopping, checkpoint
    exports    slices for each runtime: runtimes.export
    splitter   verifies and scores them -> Accuracy; then Bundle.write
"""
