"""The one loop of training and of fine-tuning: Keras' `fit`, from any step of any epoch on."""


def fit(model, position, epochs, batches, callbacks, updates, parts=None):
    """Fits `model` from `position` to the end of epoch `epochs`.

    A resumed run first finishes its epoch, which is a shorter one, and then goes on with whole ones.

    Args:
        model: compiled.
        position: `callbacks.Position`, the first of the callbacks.
        epochs: number of the last epoch.
        batches: `(epoch, first step, size)` -> what `fit` takes, endless.
        callbacks: they count weight updates.
        updates: `updates.Updates`, how these become Keras' steps.
        parts: `(begin, end)` -> [(size, begin, end)] where the size of images changes between epochs.
    """
    callbacks = updates.callbacks(callbacks)
    for begin, first, end in position.stretches(epochs):
        for size, epoch, last in parts(begin, end) if parts else [(None, begin, end)]:
            model.fit(
                batches(epoch, first, size),
                initial_epoch=epoch,
                epochs=last,
                steps_per_epoch=updates.steps(position.steps - first),
                callbacks=callbacks,
                verbose=0,
            )
