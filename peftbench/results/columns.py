"""The columns of the table of runs."""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.tasks import CLASSIFICATION


@dataclass(frozen=True)
class Column:
    """One column of the table; a missing value is `pd.NA` in every dtype."""

    name: str
    dtype: str  # a nullable pandas dtype: string, Int64, Float64 or boolean
    meaning: str


COLUMNS = (
    Column("schema", "Int64", "version of the record"),
    Column("run_id", "string", "digest of the declared identity"),
    Column("status", "string", "how the run ended: OK, UNSUPPORTED, ..."),
    Column("error", "string", "reason where the status is not OK"),
    Column("method", "string", "registered name"),
    Column("method_version", "Int64", "version of its behaviour"),
    Column("hyperparameters", "string", "of the method, as rank=8,alpha=8.0"),
    Column("backbone", "string", "short title, or the timm name where it has none"),
    Column("backbone_tag", "string", "timm name with its tag; other weights are added in brackets"),
    Column("dataset", "string", "its name; of one's own, where names are the same, with a hash"),
    Column("suite", "string", "suite it belongs to"),
    Column("suite_version", "Int64", "version of the suite"),
    Column("group", "string", "group within the suite"),
    Column("shots", "Int64", "training images of each class, in few-shot sets"),
    Column("split_seed", "Int64", "by which one's own images were split, where they were"),
    Column("folds", "Int64", "parts of one's own images that take turns as test"),
    Column("fold", "Int64", "the part that is test, from 0 on"),
    Column("seed", "Int64", "seed of head, method and order of images"),
    Column("phase", "string", "tune reports val, final reports test"),
    Column("protocol", "string", "named set of choices; records without one have the default"),
    Column("recipe", "string", "name of the recipe"),
    Column("recipe_settings", "string", "every other field of the recipe, as lr=0.001,epochs=100"),
    Column("epochs", "Int64", "of training"),
    Column("lr", "Float64", "learning rate of the recipe, for lr_reference_batch if that is set"),
    Column("weight_decay", "Float64", "of the recipe"),
    Column("batch_size", "Int64", "images of one step"),
    Column("preprocessing", "string", "as normalisation=checkpoint,resize=squash"),
    Column("image_size", "Int64", "asked for; missing means the size of the checkpoint"),
    Column("input_size", "Int64", "side of the square input in pixels, as the run was made"),
    Column("sites", "string", "how its layers are known: described, inferred or corrected"),
    Column("drop_path", "Float64", "stochastic depth rate of the parts that train"),
    Column("precision", "string", "asked for; dtype is what it became"),
    Column("selection", "string", "which epoch is reported: last, or best_on_test, which flatters"),
    Column("selection_metric", "string", "what the run is judged by, which chose its settings"),
    Column("selected_epoch", "Int64", "epoch that is reported where it was selected"),
    Column("top1_last", "Float64", "accuracy after the last epoch where another is reported"),
    Column("tuner", "string", "search that chose hyper-parameters; missing where none did"),
    Column("trials", "Int64", "trainings of that search for this method and data set"),
    Column("trial_epochs", "Int64", "epochs of each of them"),
    Column("searched", "string", "what that search chose, as recipe.lr,recipe.weight_decay"),
    Column("split", "string", "split that the next seven columns are measured on"),
    Column("top1", "Float64", "accuracy as a fraction"),
    Column("mean_per_class", "Float64", "mean of the accuracies of the classes, a fraction"),
    Column("f1_macro", "Float64", "mean of the F1 of the classes, a fraction"),
    Column("auroc", "Float64", "area under the ROC curve of two classes, a fraction"),
    Column("loss", "Float64", "mean cross-entropy in nats"),
    Column("ece", "Float64", "expected calibration error, a fraction"),
    Column("num_images", "Int64", "images of the split"),
    *(
        Column(f"val_{m.name}", "Float64", f"{m.title} on val, of the run or the trial it is from")
        for m in CLASSIFICATION.scores
    ),
    Column("params_method", "Int64", "parameters that the method adds"),
    Column("params_head", "Int64", "parameters of the classifier"),
    Column("params_unfrozen", "Int64", "backbone parameters that the method trains"),
    Column("params_backbone", "Int64", "parameters of the backbone without any classifier"),
    Column("params_tuned", "Int64", "params_method + params_unfrozen; the head is not in it"),
    Column("stored_bytes", "Int64", "size of the file that holds one tuned task"),
    Column("train_images_per_second", "Float64", "throughput of training"),
    Column("step_ms", "Float64", "median duration of a training step after warm-up, with data"),
    Column("step_ms_without_data", "Float64", "its forward and backward pass and optimiser alone"),
    Column("latency_ms_batch1", "Float64", "inference of one image, as trained"),
    Column("latency_ms_batch", "Float64", "inference of latency_batch_size images, as trained"),
    Column("latency_batch_size", "Int64", "images of that batch"),
    Column("merged_latency_ms_batch1", "Float64", "inference of one image, after merging"),
    Column("merged_latency_ms_batch", "Float64", "inference of the batch, after merging"),
    Column("latency_ms_batch1_iqr", "Float64", "between the quartiles of latency_ms_batch1"),
    Column("latency_ms_batch_iqr", "Float64", "between the quartiles of latency_ms_batch"),
    Column("merged_latency_ms_batch1_iqr", "Float64", "the same after merging"),
    Column("merged_latency_ms_batch_iqr", "Float64", "the same after merging"),
    Column("latency_measured", "string", "when another run measured these, ISO 8601, UTC"),
    Column("forward_gmacs", "Float64", "1e9 multiply-adds of one image"),
    Column("measured_gmacs", "Float64", "the same as computed of images, of what skips some of it"),
    Column("training_gflops", "Float64", "1e9 operations of one image, forward and backward"),
    Column("kept_bytes", "Int64", "activations kept for the backward pass of batch_size images"),
    Column("peak_bytes", "Int64", "device memory on a GPU, resident set on a CPU"),
    Column("frozen_until", "string", "the module up to which all was computed once an image"),
    Column("activations_found", "Int64", "images of which it had been computed before"),
    Column("activations_computed", "Int64", "images of which it was computed in this run"),
    Column(
        "seconds_saved",
        "Float64",
        "that training would have taken besides without it",
    ),
    Column("energy_joules", "Float64", "that the device took while training; missing: no counter"),
    Column("seconds_load", "Float64", "wall time of loading"),
    Column("seconds_train", "Float64", "wall time of training"),
    Column("seconds_evaluate", "Float64", "wall time of evaluation"),
    Column("seconds_total", "Float64", "wall time of the run"),
    Column("processes", "Int64", "that trained together"),
    Column("resumed", "Int64", "times that training was taken up from a checkpoint"),
    Column("merge_max_logit_diff", "Float64", "largest logit difference after merging"),
    Column("backbone_sha256", "string", "of the backbone tensors that were loaded"),
    Column("manifest", "string", "hash of the files and splits of the data set"),
    Column("content", "string", "hash of one's own images and labels, whatever the splits"),
    Column("train_images", "Int64", "images that trained"),
    Column("classes", "Int64", "classes of the data set"),
    Column("git_commit", "string", "of the code"),
    Column("git_dirty", "boolean", "whether the code differed from that commit"),
    Column("peftbench", "string", "version"),
    Column("torch", "string", "version"),
    Column("timm", "string", "version"),
    Column("host", "string", "name of the machine"),
    Column("device", "string", "that trained"),
    Column("dtype", "string", "arithmetic of the forward pass"),
    Column("limit", "Int64", "at most this many images of each split; missing means all"),
    Column("data_settings", "string", "what the data set is asked beyond its defaults: shots=4"),
    Column("shift_metrics", "string", "on shifted test sets, as imagenet_a/top1=0.4"),
    Column("started", "string", "ISO 8601, UTC"),
    Column("finished", "string", "ISO 8601, UTC"),
)
DTYPES = {column.name: column.dtype for column in COLUMNS}
# of the reported split, by the names that records and columns share
VAL = tuple(f"val_{metric.name}" for metric in CLASSIFICATION.scores)
METRICS = ("top1", "mean_per_class", "f1_macro", "auroc", "loss", "ece", "num_images")
ORDER = (
    *("backbone", "suite", "dataset", "method", "hyperparameters", "recipe"),
    *("split_seed", "fold", "seed", "run_id"),
)
EPOCH_COLUMNS = (
    Column("run_id", "string", "digest of the declared identity"),
    Column("epoch", "Int64", "counted from 1"),
    Column("loss", "Float64", "mean training loss over the images of the epoch"),
    Column("accuracy", "Float64", "training accuracy over the epoch, a fraction"),
    Column("lr", "Float64", "learning rate at the last step"),
    Column("seconds", "Float64", "wall time of the epoch"),
)
