"""SinkScope as a model of lmms-eval: `lmms_eval --model sinkscope --model_args
pretrained=...,var=true`.

lmms-eval finds it by the entry point `lmms_eval.models` of the installed package. Nothing here is
imported by the rest of the project, and only `model` imports lmms-eval.
"""
