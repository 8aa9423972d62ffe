/* app.h -- the whole program: opens and closes every room in order, and turns the loop. */
#ifndef CHUTE_APP_H
#define CHUTE_APP_H

#include "config.h"

/* Returns the process's exit code: 0 fine, 1 failed, 2 wrong usage, 78 configuration invalid. */
int app_main(int argc, char **argv);

/* The drivers of this build. */
extern const struct config_drivers app_drivers;

#endif
