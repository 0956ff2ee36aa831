"""The regularization of TensorFlow 1 without TensorFlow: `tf.contrib.layers` regularizers, variables and collections.

Names, scopes, collections and errors are TensorFlow's; arrays are NumPy's, CuPy's or another library's, and every
penalty has gpureg's bits. There is no session and no symbolic graph: forward code runs at once, on arrays, and a
`Graph` only keeps variables by name and collections. What a collection holds of variables is evaluated when it is
asked for, so that it is always of the weights as they are.

Examples
--------
>>> import numpy as np
>>> from gpureg import tf1
>>> with tf1.Graph().as_default():
...     with tf1.variable_scope("fc", regularizer=tf1.l2_regularizer(0.5)):
...         kernel = tf1.get_variable("kernel", initializer=np.ones((2, 3), np.float32))
...         bias = tf1.get_variable("bias", [3], initializer=np.zeros, regularizer=tf1.no_regularizer)
...     [penalty] = tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
>>> penalty.name, float(penalty)
('fc/kernel/Regularizer/l2_regularizer:0', 1.5)
>>> kernel *= 2
>>> float(penalty)
6.0
"""

from gpureg.tf1 import losses, nn
from gpureg.tf1.deferred import DeferredLoss
from gpureg.tf1.graph import (
    Graph,
    GraphKeys,
    add_to_collection,
    get_collection,
    get_collection_ref,
    get_default_graph,
    reset_default_graph,
    set_random_seed,
    trainable_variables,
)
from gpureg.tf1.math import add_n, reduce_sum
from gpureg.tf1.regularizers import (
    apply_regularization,
    l1_l2_regularizer,
    l1_regularizer,
    l2_regularizer,
    no_regularizer,
    sum_regularizer,
)
from gpureg.tf1.scopes import AUTO_REUSE, VariableScope
from gpureg.tf1.variables import Variable, get_variable, get_variable_scope, variable_scope

__all__ = [
    "AUTO_REUSE",
    "DeferredLoss",
    "Graph",
    "GraphKeys",
    "Variable",
    "VariableScope",
    "add_n",
    "add_to_collection",
    "apply_regularization",
    "get_collection",
    "get_collection_ref",
    "get_default_graph",
    "get_variable",
    "get_variable_scope",
    "l1_l2_regularizer",
    "l1_regularizer",
    "l2_regularizer",
    "losses",
    "nn",
    "no_regularizer",
    "reduce_sum",
    "reset_default_graph",
    "set_random_seed",
    "sum_regularizer",
    "trainable_variables",
    "variable_scope",
]
