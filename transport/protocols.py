"""Published ways of sampling, by the name of `sample_ddp.py --protocol`: the values of its flags.

Guidance intervals are in t (t = 1 is data). Behind each row: its source and FID-50K for SiT-XL/2.
"""

from typing import Any

ODE_HEUN = dict(mode="ODE", sampling_method="heun2", num_sampling_steps=250)
SDE_SIGMA = dict(
    mode="SDE",
    sampling_method="Euler",
    num_sampling_steps=250,
    diffusion_form="sigma",
    diffusion_norm=1.0,
    last_step="Mean",
    last_step_size=0.04,
)
EULER_50 = dict(mode="ODE", sampling_method="euler", num_sampling_steps=51)
DDIM_50 = dict(mode="DDPM", ddim=True, num_sampling_steps=50)
UNGUIDED = dict(cfg_scale=1.0)
CFG_PAPER = dict(cfg_scale=1.37, cfg_channels="3", guidance_low=0.0, guidance_high=1.0)
CFG_VIDEO = dict(cfg_channels="all", guidance_low=0.0, guidance_high=1.0)
CFG_REPA = dict(cfg_scale=1.8, cfg_channels="all", guidance_low=0.3, guidance_high=1.0)

# 250 is read as time points, as in SiT: 498 calls with Heun, 250 with Euler and its last step. The
# paper does not say it of Heun: paper-ode-250 is the other reading, 125 intervals of two calls.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper-ode": ODE_HEUN | UNGUIDED | dict(float64=False),  # LayerSync Table 1, 160 epochs: 8.29
    "paper-ode-250": ODE_HEUN | UNGUIDED | dict(num_sampling_steps=126, float64=False),
    "paper-sde": SDE_SIGMA | CFG_PAPER | dict(float64=False),  # LayerSync Table 2, 800 epochs: 1.89
    # MDM 2209.14916 on HumanML3D: 0.489 by the mended evaluator; LayerSync Table 4: 0.4801
    "mdm": dict(mode="DDPM", cfg_scale=2.5),
    # Wan2.1: the 50 calls, the shift and the guidance of its pipeline in diffusers, whose solver is
    # another, of higher order (UniPC).
    "wan": EULER_50 | CFG_VIDEO | dict(cfg_scale=5.0, time_shift=3.0, float64=False),
    # CogVideoX-2B: its pipeline's
    "cogvideox": DDIM_50 | CFG_VIDEO | dict(cfg_scale=6.0, float64=False),
    "repa-sde": SDE_SIGMA | CFG_REPA | dict(float64=True),  # REPA 2410.06940, its best row
}
