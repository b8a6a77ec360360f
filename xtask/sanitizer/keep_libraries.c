/* Preloaded: no library is unloaded, so that a report at the end of a process can name the library that a leak is of. */
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
