"""The subcommands, and what each of them does."""

RUN_NAME = "FLOWERS_PL_RUN_NAME"  # hands a run's name on to the processes that Lightning starts
SUMMARIES = {
    "fit": "Train in two stages, evaluate the best checkpoint, and write the final model.",
    "teach": "Let a better network judge the training photos, for soft labels to train on.",
    "validate": "Evaluate a checkpoint on the validation side: loss, accuracy, F1.",
    "test": "Report on a checkpoint: metrics, figures, a table of all photos, misclassified ones.",
    "predict": "Write a table of photos with the probability of each class.",
    "audit": "Find what is wrong with a folder of photos: files, duplicates, labels, poor pictures.",
    "explain": "Show where the model looks: heat maps in the run's folder gradcam.",
    "export": "Write the final model for use elsewhere, checked against its checkpoint, and a model card.",
    "serve": "Classify pictures on a page in the browser, and for other programs by HTTP.",
    "pack": "Put a folder of photos into shards, for training from an object store or without a cache.",
    "cache": "List the decoded photos and shards of packs that are kept between runs, or remove them.",
}
