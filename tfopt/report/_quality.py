"""The measures of models on data: outputs collected, told what they mean, measured."""

import numpy as np

from .._check import TEXT, DictOf, ListOf, did_you_mean, require
from .._litert import file
from ._intervals import measured
from ._measures import MEASURES, MULTICLASS, ranked_columns, value
from ._task import LABELED, Kind, kinds_of, sample_of

BATCH = 256
CHOICE = ListOf(TEXT) | DictOf(ListOf(TEXT))
CHOICE.text = 'a list of names such as ["f1", "roc_auc"], or a dict of such lists, one for each output'


def require_known(choice):
    """Refuses names that are no measures."""
    parts = choice.values() if isinstance(choice, dict) else [choice or ()]
    for name in (name for part in parts for name in part):
        require(name in MEASURES, "`measures` must be names of measures", measure=name,
                do=did_you_mean(name, MEASURES) or f"There are {', '.join(MEASURES)}.")


def collected(subjects, source):
    """({model: {output: float32 array}}, {model: {output: labels}}) of all models on the same batches."""
    outputs, labels = {name: {} for name in subjects}, {name: {} for name in subjects}
    for x, y, _ in source.batches(BATCH):
        for name, subject in subjects.items():
            names = subject.output_names
            for output, values in by_output(subject.predict(x), names).items():
                outputs[name].setdefault(output, []).append(np.asarray(values, "float32"))
            for output, values in by_output(y, names or list(outputs[name])).items():
                labels[name].setdefault(output, []).append(np.asarray(values))
    for name in subjects:
        if len(outputs[name]) == len(labels[name]) == 1:
            labels[name] = dict(zip(outputs[name], labels[name].values(), strict=True))
        require(set(labels[name]) == set(outputs[name]), "y must hold labels for each output of the model", model=name,
                outputs=sorted(outputs[name]), labels=sorted(labels[name]),
                do="Pass y as a dict by output, or a list in their order.")
    return [{name: {output: np.concatenate(parts) for output, parts in found.items()}
             for name, found in all_of_them.items()} for all_of_them in (outputs, labels)]


def by_output(values, names):
    """{output: array}: a dict as it is, a list by the names of the outputs."""
    if isinstance(values, dict):
        return {key: part for key, part in values.items() if part is not None}
    parts = list(values) if isinstance(values, list | tuple) else [values]
    known = names if len(names) == len(parts) else [f"output_{i}" for i in range(len(parts))]
    return dict(zip(known, parts, strict=True))


def samples(subjects, outputs, labels):
    """{model: {output: Sample}}; a model that does not say what an output means is read as those beside it."""
    kinds = {name: _kinds(subject, list(outputs[name])) for name, subject in subjects.items()}
    found = {name: {} for name in subjects}
    for name, own in outputs.items():
        for place, output in enumerate(own):
            beside = [other[place] for other in kinds.values() if len(other) == len(own)]
            said = kinds[name][place]
            kind = Kind(said.task or _common(other.task for other in beside),
                        _common(other.logits for other in beside) if said.logits is None else said.logits)
            found[name][output] = sample_of(labels[name][output], own[output], kind,
                                            f"{name}, output {output}" if len(own) > 1 else name)
    return found


def _common(values):
    """The one value that is not None, or None where there are several or none."""
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def _kinds(subject, names):
    """[Kind] of the outputs of a Keras model or a file."""
    if hasattr(subject.model, "parsed"):
        *_, last = "", *subject.model.ops["op"][file.computing(subject.model.ops)]
        kinds = [{"SOFTMAX": Kind(MULTICLASS, False), "LOGISTIC": Kind(LABELED, False)}.get(last, Kind())]
    else:
        kinds = kinds_of(subject.model, subject.graph)
    return kinds if len(kinds) == len(names) else [Kind()] * len(names)


def columns(subjects, outputs, labels, choice):
    """{model: {output: {column: number}}} of the measures of `choice`, with intervals and paired tests."""
    found = samples(subjects, outputs, labels)
    first = next(iter(found.values()))
    require(all(list(own) == list(first) for own in found.values()) or len(first) == 1,
            "models that are compared by measures must have the same outputs",
            outputs={name: list(own) for name, own in found.items()})
    by_place = {output: {name: list(own.values())[place] for name, own in found.items()}
                for place, output in enumerate(first)}
    names = chosen(choice, {output: list(parts.values()) for output, parts in by_place.items()})
    parts = {output: measured(by_place[output], names[output]) for output in by_place if names[output]}
    return {name: {output: part[name] for output, part in parts.items()} for name in subjects}


def chosen(choice, of):
    """{output: names of measures} of what the user chose; `of`: {output: Samples of all models}.

    A measure that is chosen for all of several outputs is taken of those it is defined for.
    """
    if isinstance(choice, dict):
        require(set(choice) <= set(of), "`measures` must name outputs of the model", measures=sorted(choice),
                outputs=sorted(of))
    for_all = () if isinstance(choice, dict) else choice
    found = {output: [] for output in of}
    for output, given in ({} if for_all else choice).items():
        for name in given:
            why = _unfit(name, of[output])
            require(not why, f"`{name}` {why}", output=output, do=_alternatives(of[output]))
            found[output].append(name)
    for name in for_all:
        why = {output: _unfit(name, parts) for output, parts in of.items()}
        first = next(iter(of))
        require(not all(why.values()), f"`{name}` {why[first]}", do=_alternatives(of[first]))
        for output in of:
            found[output] += [] if why[output] else [name]
    return {output: list(dict.fromkeys(names)) for output, names in found.items()}


def _alternatives(parts):
    return f"For it there are {', '.join(name for name in MEASURES if not _unfit(name, parts))}."


def _unfit(name, parts):
    """Why the measure is not defined for these Samples, "" if it is."""
    measure, sample = MEASURES[name], parts[0]
    if any(part.task not in measure.tasks for part in parts):
        return f"is for {' and '.join(measure.tasks)}, this output is {' and '.join(sorted({p.task for p in parts}))}"
    if measure.one and sample.labels.shape[1] > 1:
        return "needs one label an example, these have one for each position"
    if measure.every and not all(0 < column.sum() < len(column) for column, _ in ranked_columns(sample)):
        return "needs examples with and without each class"
    if name == "top_5_accuracy" and sample.classes <= 5:
        return f"needs more than 5 classes, here are {sample.classes}"
    if name == "r2" and (sample.labels == sample.labels[:1]).all(axis=0).any():
        return "needs numbers that differ"
    return ""


def evaluate(subjects, outputs, labels, choice):
    """{measure: value} of the first model, without intervals; of several outputs {"<output>_<measure>": value}."""
    found = next(iter(samples(subjects, outputs, labels).values()))
    names = chosen(choice, {output: [sample] for output, sample in found.items()})
    return {f"{output}_{name}" if len(found) > 1 else name: value(name, sample)
            for output, sample in found.items() for name in names[output]}
