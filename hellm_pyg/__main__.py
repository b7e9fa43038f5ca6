"""``python -m hellm_pyg`` (also under ``accelerate launch -m hellm_pyg``)."""

from hellm_pyg.cli import main

if __name__ == '__main__':
    main()
