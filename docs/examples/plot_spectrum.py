"""
What an activation does to frequencies
======================================

ReLU is half the signal and half its absolute value. The second half brings new lines: a constant (the DC), even harmonics, sums
and differences of tones. Where they lie and how large they are is known beforehand, and the DC runs through every CNN.
"""

# %%
# One tone, two tones: a second of each, 4096 samples. The parts add up to the output.

import matplotlib.pyplot as plt
import torch

import termwise as tw
from termwise.functions import dc_report, relu_harmonics

t = torch.arange(4096, dtype=torch.float64) / 4096
one = torch.cos(2 * torch.pi * 60 * t)
two = one + 0.7 * torch.cos(2 * torch.pi * 97 * t)
spectra = [tw.relu_spectrum(x, fs=4096).check() for x in (one, two)]
for spectrum in spectra:
    print(spectrum.summary())

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, spectrum, title in zip(axes, spectra, ("one tone: 60 Hz", "two tones: 60 and 97 Hz"), strict=True):
    for i, name in enumerate(spectrum.parts):
        heights = spectrum.amplitudes(name)[0]
        seen = (heights > 1e-4) & (spectrum.frequencies < 500)
        if seen.any():
            axis.vlines(spectrum.frequencies[seen], 1e-4, heights[seen], color=f"C{i % 10}", label=name, linewidth=1.8)
    axis.set(yscale="log", ylim=(1e-4, 2), xlabel="frequency (Hz)", title=title)
    axis.legend(fontsize="x-small", ncols=2)
axes[0].set_ylabel("amplitude")
plt.show()

# %%
# For one tone there is a closed form: A/pi, A/2, and 2A / (pi (4 m^2 - 1)) at every even harmonic.

for k, (exact, found) in enumerate(zip(relu_harmonics(1.0, 6), spectra[0].amplitudes()[0, ::60], strict=False)):
    print(f"harmonic {k}: {exact:+.5f}, by FFT {found:.5f}")

# %%
# The paper comes to the lines by a Taylor series of the root in ``|x| = sqrt(x^2)``, whose powers are convolutions of spectra. It
# converges, slowly: at x = 0 its error falls like N^(-1/2).

for order in (1, 4, 16, 64):
    series = tw.relu_spectrum(one, fs=4096, taylor_order=order)
    print(f"order {order:2}: DC {series.parts['dc'][0, 0]:.4f}, largest error {series.remainder.abs().max():.3f}")

# %%
# A real CNN: MobileNetV2 on two photographs. Every activation adds a DC, and a good part of the energy lies there. A Gaussian
# with each channel's mean and deviation predicts most of it; where the pre-activations are far from Gaussian, late in the
# network, it does not.

subject = tw.zoo.load("mobilenet-v2")
photos = torch.cat([subject.prepare(tw.zoo.photo(name)) for name in ("china", "flower")])
report = dc_report(subject.model, photos).check()
print(report.summary())
print(report.table())

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
layers = range(1, len(report.layers) + 1)
axes[0].bar(layers, report.share)
axes[0].set(xlabel="activation layer", ylabel="share of the energy at frequency 0", ylim=(0, 1))
axes[1].plot(layers, report.measured, "o-", label="measured")
axes[1].plot(layers, report.predicted, "x--", label="Gaussian")
axes[1].set(xlabel="activation layer", ylabel="DC")
axes[1].legend()
plt.show()
