"""Computation: what need not be computed again, and by how much the result changes if it is not."""

from .diagonal_ssm import DiagonalSSM, State
from .recurrent_model import Recurrent, convolution_taps, to_recurrent
from .tnn import TNN, ToeplitzMixer
from .toeplitz_ssm import toeplitz_to_ssm

__all__ = ["TNN", "DiagonalSSM", "Recurrent", "State", "ToeplitzMixer", "convolution_taps", "to_recurrent", "toeplitz_to_ssm"]
