"""The folder of a run: what it holds, how it grows, and how it is opened again.

    run.toml             the configuration; `evaluate run --config run.toml` makes the same run
    provenance.json      what it was made with: model, data, versions, machine, state of git
    records.jsonl        one answer a line, in the order in which they came
    records-1-of-4.jsonl the same for shard 1 of 4, in place of records.jsonl

A line of records is a JSON object with exactly these keys (`evaluation.record.AnswerRecord`):

    task, protocol       names, such as "pope" and "fixed"
    question             text: the question's id, unique in the task
    index                whole number: its place in the task's list of questions, before `--limit`
                         and shards cut it; reports sort by it
    method               name, such as "default", "var", "var-random", "var keep=0.3"
    prompt_hash          SHA-256 of all that the model was given: texts, images' pixels, system
                         prompt, image bounds, token limit. The same for every method of a question
    answer               text; null where there is an error
    extraction           text: what the judge took the answer to be; null where it made nothing of
                         it
    score                number from 0 to 1 (`Judgement.score`); null where there is an error
    details              object: `Judgement.details`
    truth, category, cluster, fields
                         of the question, as `evaluation.base.Question` has them (tuples are lists)
    log_probabilities    list of numbers: of each answer token, in nats, as the model gave it; null
                         where there is an error
    finish               "end" or "length", as `GenerationTrace.finish`; null with an error
    sinks                whole number: vision tokens that VAR's dimensions and threshold (or the
                         profile's, for `default`) mark in at least one layer; null where nothing is
                         known of sinks
    rows_changed         number from 0 to 1: share of (layer, head, query row) that VAR changed;
                         0 for `default`
    mass_moved           number: attention mass moved, mean over these rows; 0 for `default`
    seconds              of this answer; shared work is split evenly among those that share it
    error                null, or text: why there is no score. Such a record counts in no metric,
                         and the run is not complete; the next run into the folder tries it again
    host                 object: host name, process, device. `seconds` and `host` alone may differ
                         between two runs of one configuration

A question's records stand next to each other, one a method, and are written in one go. What a
killed process leaves half-written at the end is cut off when the folder is opened again.
"""
